"""stdout and stderr that are closed, full, without a reader or in another encoding, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import sys
from newllm.errors import ConfigError, run_command
from newllm.streams import go_on_without_output

def command(words):
    if "train" in words:
        go_on_without_output()
    for number in range(3000):
        print("café", number, "·" * 20)
    with open("finished", "w"):
        pass
    if "refuse" in words:
        raise ConfigError("lr=abc: expected a number.")
    return 0

raise SystemExit(run_command(command, None))
"""


@pytest.mark.parametrize(
    ("words", "shell", "status", "finished", "stderr"),
    [
        ("", "> /dev/null", 0, True, ""),
        ("", "| head -1", 141, False, ""),
        ("train", "| head -1", 0, True, ""),
        ("", "> /dev/full", 1, False, "newllm: the output: the disk is full; make room and type the same command"),
        ("train", "> /dev/full", 0, True, "newllm: the output can't be written (No space left on device); the work"),
        ("refuse", ">&- 2> errors", 2, True, ""),
        ("refuse", "> /dev/null 2>&-", 2, True, ""),
        ("refuse", "<&- >&- 2>&-", 2, True, ""),
        ("refuse", "> /dev/null 2> /dev/full", 2, True, ""),
        ("refuse $'\\xff'", "", 2, False, "newllm: the argument '\\udcff' is not valid utf-8 text"),
    ],
)
def test_a_command_ends_as_it_should_whatever_becomes_of_its_output(
    tmp_path: Path, words: str, shell: str, status: int, finished: bool, stderr: str
) -> None:
    script = tmp_path / "command.py"
    script.write_text(COMMAND, encoding="utf-8")
    line = f"{sys.executable} {script} {words} {shell}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, (tmp_path / "finished").exists()) == (status, finished)
    assert done.stderr.startswith(stderr)
    assert len(done.stderr.splitlines()) == bool(stderr)


@pytest.mark.parametrize("variables", ["PYTHONIOENCODING=ascii", "PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C"])
def test_characters_that_the_terminal_lacks_are_escaped(tmp_path: Path, variables: str) -> None:
    script = tmp_path / "command.py"
    script.write_text(COMMAND, encoding="utf-8")
    line = f"{variables} {sys.executable} {script}; {variables} {sys.executable} -m newllm.train --help"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf\\xe9 2999 \\xb7" in done.stdout
    assert "(environment) show tracebacks" in done.stdout
