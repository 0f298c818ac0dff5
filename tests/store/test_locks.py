"""Locks where the file system has none: a sentence, and locks by files on request."""

import errno
import fcntl
import multiprocessing
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from newllm.data.disk_cache import locked
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy, choosing, launches, recorded


@pytest.fixture(autouse=True)
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize(
    "hold",
    [
        lambda folder: RunDirectory(folder).locked(),
        lambda folder: choosing(folder),
        lambda folder: locked(folder, "token store"),
    ],
)
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Callable[[Path], AbstractContextManager[Any]]
) -> None:
    with pytest.raises(ConfigError, match=r"cannot be locked \(No locks available\).* set NEWLLM_LOCKS=files to"):
        hold(tmp_path / "x").__enter__()
    monkeypatch.setenv("NEWLLM_LOCKS", "files")
    with hold(tmp_path / "x"):
        pass

    def hold_and_die() -> None:
        with hold(tmp_path / "x"):
            os._exit(9)

    killed = multiprocessing.get_context("fork").Process(target=hold_and_die)
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    assert [*tmp_path.rglob("*.file.lock")]
    with hold(tmp_path / "x"):  # the lock of a process that is gone
        pass


def test_locks_by_files_keep_others_out_and_tell_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWLLM_LOCKS", "files")
    run = RunDirectory(tmp_path / "run")
    with run.locked(), recorded(tmp_path, "local", {}, Policy(), [run.path]):
        run.begin_attempt()
        assert (run.observed(), launches(tmp_path)[0]["alive"]) == ("running", True)
        with pytest.raises(ConfigError, match="is in use by process"), RunDirectory(run.path).locked():
            pass
    assert (run.observed(), launches(tmp_path)[0]["alive"]) == ("interrupted", False)
