"""What a worker does with its runs, and how it takes signals; test_local.py kills workers of a launcher."""

import os
import signal
import time
from pathlib import Path

import pytest

from newllm.errors import RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.workers import Workers, sentence, work
from tests.support.small_runs import freeze_small_run, read_status


def test_a_frozen_run_is_done_once_and_keeps_its_configuration(tmp_path: Path) -> None:
    run = freeze_small_run(tmp_path / "run", 1)
    frozen = RunDirectory(run).config()
    assert work(run) == 0
    assert read_status(run)["state"] == "done"
    assert RunDirectory(run).config() == frozen
    log = (run / "train.log").read_text()
    assert work(run) == 0
    assert (run / "train.log").read_text() == log
    assert read_status(run)["attempt"] == 1


def test_a_refused_run_says_why_and_has_another_exit_status(tmp_path: Path) -> None:
    run = freeze_small_run(tmp_path / "run", 1)
    config = RunDirectory(run).config()
    RunDirectory(run).freeze(config | {"runtime": config["runtime"] | {"device": "cuda:7"}})
    assert work(run) == 2
    assert read_status(run)["state"] == "failed"
    assert "runtime.device=cuda:7 is not on this machine" in read_status(run)["error"]
    assert read_status(run)["traceback"] is None


def test_an_unexpected_exception_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(cfg: object) -> int:
        raise ZeroDivisionError("division by zero")

    run = freeze_small_run(tmp_path / "run", 1)
    monkeypatch.setattr("newllm.run.execute.run", broken)
    assert work(run) == 1
    assert read_status(run)["state"] == "failed"
    assert read_status(run)["error"] == "ZeroDivisionError: division by zero"
    assert 'raise ZeroDivisionError("division by zero")' in read_status(run)["traceback"]
    assert read_status(run)["finished"]


def test_an_expected_error_is_written_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(cfg: object) -> int:
        raise RunError("no space left for the token store")

    run = freeze_small_run(tmp_path / "run", 1)
    monkeypatch.setattr("newllm.run.execute.run", broken)
    assert work(run) == 1
    assert (read_status(run)["error"], read_status(run)["traceback"]) == ("no space left for the token store", None)


def test_a_run_of_another_process_is_left_as_it_is(tmp_path: Path) -> None:
    run = freeze_small_run(tmp_path / "run", 1)
    with RunDirectory(run).locked() as held:
        held.begin_attempt()
        before = read_status(run)
        assert work(run) == 2
        assert read_status(run) == before


def test_a_directory_without_a_frozen_run_is_refused(tmp_path: Path) -> None:
    assert work(tmp_path / "nothing") == 2
    assert "does not exist" in read_status(tmp_path / "nothing")["error"]


def test_errors_become_one_sentence() -> None:
    assert sentence(KeyError("head_dim")) == "KeyError: 'head_dim'"
    assert sentence(ValueError("one\ntwo")) == "ValueError: one"
    assert sentence(AssertionError()) == "AssertionError"
    out = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert "a smaller batch_size" in sentence(out)


def test_a_signal_that_arrives_while_a_worker_is_forked_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setsid = os.setsid

    def slow_setsid() -> None:  # the first call of a worker
        time.sleep(0.3)
        setsid()

    monkeypatch.setattr(os, "setsid", slow_setsid)
    before = signal.signal(signal.SIGTERM, lambda signum, frame: None)  # which the worker inherits
    try:
        workers = Workers()
        pid = workers.start([tmp_path], {})
        workers.signal(pid, signal.SIGTERM)
        while not (ended := workers.wait(1.0)):
            pass
        assert ended == [(pid, -signal.SIGTERM)]
    finally:
        signal.signal(signal.SIGTERM, before)
