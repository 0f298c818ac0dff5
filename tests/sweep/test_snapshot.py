"""Runs that start later are not changed by later edits of the code."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from newllm.errors import ConfigError
from newllm.store import code_digest
from newllm.sweep.snapshot import python_path, snapshot


def run_with_snapshot(sweep: Path, code: str) -> list[str]:
    """The lines that `code` prints in a process that runs the snapshot of the sweep."""
    environment = {**os.environ, "PYTHONPATH": python_path(sweep)}
    command = [sys.executable, "-P", "-c", code, str(sweep)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_copy_is_what_runs_and_a_copy_of_it_is_the_same_code(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    assert snapshot(tmp_path) == folder, "the same code is copied once"
    files = "import newllm; from newllm.config.catalog import shipped; print(newllm.__file__); print(shipped())"
    assert all(Path(line).is_relative_to(folder) for line in run_with_snapshot(tmp_path, files))
    copy_again = "import sys; from pathlib import Path; from newllm.sweep.snapshot import snapshot; "
    copy_again += "print(snapshot(Path(sys.argv[1])))"
    assert run_with_snapshot(tmp_path, copy_again) == [str(folder)]


def test_the_environment_of_a_run_names_the_commit_and_the_hash_of_the_copy(tmp_path: Path) -> None:
    git_state = "from pathlib import Path; import newllm; from newllm.store.environment import git_state; "
    git_state += "print(git_state(Path(newllm.__file__).parent)['source_sha256'])"
    assert run_with_snapshot(tmp_path, git_state) == [snapshot(tmp_path).name]


@pytest.mark.parametrize(
    "change",
    [
        lambda copy: (copy / "newllm/errors.py").open("a").write("\n# more\n"),
        lambda copy: (copy / "newllm/errors.pyc").write_bytes(b""),
        lambda copy: (copy / "torch.py").touch(),
        lambda copy: (copy / "newllm/.hidden").touch(),
        lambda copy: (copy / "newllm/errors.py").unlink(),
        lambda copy: (copy / "newllm/cli").symlink_to("/"),
        lambda copy: shutil.move(copy / "conf/eval/loss.yaml", copy / "conf/eval/lost.yaml"),
        lambda copy: (copy.rename(copy.with_name("other")), copy.symlink_to("other")),
    ],
)
def test_a_changed_copy_is_not_executed(tmp_path: Path, change: Callable[[Path], object]) -> None:
    copy = snapshot(tmp_path)
    for compiled in (copy / "newllm/__pycache__", copy / "conf/__pycache__"):
        compiled.mkdir()
        (compiled / "errors.cpython-311.pyc").write_bytes(b"code of somebody else")
    script = [sys.executable, "-I", "-c", Path(code_digest.__file__).read_text(), str(copy)]  # as a SLURM job does
    assert subprocess.run(script, check=False).returncode == 0
    assert snapshot(tmp_path) == copy
    assert not list(copy.rglob("*.pyc")), "compiled files are made again"
    change(copy)
    assert subprocess.run(script, check=False, stderr=subprocess.DEVNULL).returncode == 1
    with pytest.raises(ConfigError, match=r"is no longer the code that was copied there; delete that folder"):
        snapshot(tmp_path)
