"""Runs that start later are not changed by later edits of the code."""

import subprocess
import sys
from pathlib import Path

from newllm.sweep.snapshot import environment, snapshot

_COPY = """
import sys
from pathlib import Path
from newllm.sweep.snapshot import snapshot
print(snapshot(Path(sys.argv[1])))
"""
_SAY = "import newllm; from newllm.config.catalog import shipped; print(newllm.__file__); print(shipped())"


def test_the_copy_is_what_runs_and_knows_where_it_comes_from(tmp_path: Path) -> None:
    code = snapshot(tmp_path)
    assert snapshot(tmp_path) == code, "the same code is copied once"
    said = subprocess.run(
        [sys.executable, "-P", "-c", _SAY], env=environment(code), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [Path(line).is_relative_to(code) for line in said] == [True, True]
    again = subprocess.run(
        [sys.executable, "-P", "-c", _COPY, str(tmp_path)],
        env=environment(code), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert again.stdout.strip() == str(code), "a copy of the copy is the same code"


def test_the_environment_of_a_run_names_the_commit_and_the_hash_of_the_copy(tmp_path: Path) -> None:
    code = snapshot(tmp_path)
    asked = "from pathlib import Path; import newllm; from newllm.store.environment import git_state; "
    asked += "print(git_state(Path(newllm.__file__).parent)['source_sha256'])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", asked], env=environment(code), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == code.name
