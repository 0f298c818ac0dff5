"""Runs that start later are not changed by later edits of the code."""

import os
import subprocess
import sys
from pathlib import Path

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
