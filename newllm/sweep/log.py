"""A run's log on the console, as it grows if that is wanted."""

import sys
import time
from pathlib import Path

from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.state import Line, survey

_READ_SECONDS = 0.3
_ASK_SECONDS = {False: 1.0, True: 10.0}  # between two looks at the run's state; True: SLURM is asked


def show(sweep: Path, run: Path, follow: bool = False) -> None:
    """Print train.log; follow: until the run has ended. What the process of a run that did not end well wrote to
    stderr comes last.

    Raises ConfigError if there is nothing to print, and nothing to wait for.
    """
    log, read = RunDirectory(run).log_file, 0
    while True:
        line = _observe(sweep, run)
        until = time.monotonic() + _ASK_SECONDS[line.slurm is not None]
        read = _print_from(log, read)  # after the look, so that the last words of a run that ended are not missed
        if not (follow and line.attended):
            break
        while time.monotonic() < until:
            time.sleep(_READ_SECONDS)
            read = _print_from(log, read)
    others = [file for file in _last_words(sweep, run, line) if file.is_file() and file.stat().st_size]
    for file in others:
        print(f"--- {file}")
        _print_from(file, 0)
    if not log.exists() and not others:
        why = f": {line.error}" if line.error else "."
        raise ConfigError(f"{run.name} has no log yet, since it has not begun; it is {line.state}{why}")


def _observe(sweep: Path, run: Path) -> Line:
    return survey(sweep, [run])[0]


def _last_words(sweep: Path, run: Path, line: Line) -> list[Path]:
    if line.state == "done" or line.attended:
        return []
    if line.slurm and not RunDirectory(run).log_file.exists():
        return [run / "stderr.log", *sorted((sweep / ".sweep" / "slurm").glob(f"{line.slurm}_*log.err"))]
    return [run / "stderr.log"]


def _print_from(file: Path, position: int) -> int:
    """Print what `file` has from there on; returns its length. A log that has become shorter was begun anew."""
    if not file.exists():
        return 0
    with file.open("rb") as stream:
        if stream.seek(0, 2) < position:
            position = 0
        stream.seek(position)
        text = stream.read()
    sys.stdout.write(text.decode("utf-8", errors="replace"))
    sys.stdout.flush()
    return position + len(text)
