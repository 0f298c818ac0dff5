"""What first phases share: their lines at the beginning of metrics.jsonl, their table, their console section."""

import json
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from newllm.data import Dataset
from newllm.run.stage import StageResult
from newllm.store.intact import read_bytes
from newllm.store.run_directory import RunDirectory
from newllm.training.run_context import Run

CLOCK = ("time/", "speed/")  # prefixes of the values that differ between attempts
Line = dict[str, Any]  # of metrics.jsonl; "phase" names the first phase


def finish_phase(
    run: Run, metrics: dict[str, float], lines: Sequence[Line], text: list[str], data: Dataset | None = None
) -> StageResult:
    """Write and show the result of a first phase, whose part of the model is trained and frozen.

    lines: all its lines of metrics.jsonl. text: its console section. data: the dataset with stored contexts, if the
    second phase reads them.
    """
    write_lines(run.directory, lines, complete=True)
    rows = []
    for number, line in enumerate(lines, 1):
        row = {key.rpartition("/")[2]: value for key, value in line.items() if key != "phase"}
        rows.append({**row, "seconds": seconds_of_last(lines[:number])})
    run.directory.write_table("phase1", rows)
    run.console.section("Phase 1", text)
    run.console.title("Phase 2")
    return StageResult(metrics, data, phase_bytes(run.directory))


def update_progress(run: Run, name: str, step: int, steps: int, lines: Sequence[Line]) -> None:
    """Write the progress of the phase `name` to status.json."""
    loss = lines[-1]["phase1/loss"] if lines else None
    run.directory.update_status(progress={"phase": name, "step": step, "steps": steps, "loss": loss})


def write_lines(directory: RunDirectory, lines: Sequence[Line], complete: bool = False) -> None:
    """Make metrics.jsonl begin with these lines of a phase, some of which an earlier attempt may have written.

    An equal line is kept, whatever its times. The first line that differs or is missing replaces everything after it.
    So a run killed between a checkpoint and its line gets that line, and repeating a phase whose files were deleted
    keeps the lines of the second phase. complete: these are all the lines of the phase.
    """
    stored = _stored_lines(directory)
    pairs = zip(stored, lines, strict=False)
    equal = len(list(takewhile(lambda pair: timeless(json.loads(pair[0])) == timeless(pair[1]), pairs)))
    if equal < len(lines) or (complete and equal < len(stored)):
        directory.truncate_metrics(sum(map(len, stored[:equal])))
        for line in lines[equal:]:
            directory.append_metrics(line)


def phase_bytes(directory: RunDirectory) -> int:
    """Bytes that the lines of a first phase take in metrics.jsonl."""
    return sum(map(len, _stored_lines(directory)))


def seconds_of_last(lines: Sequence[Line]) -> float:
    """Seconds between the last two lines; their clock includes all attempts."""
    before = lines[-2]["time/seconds"] if len(lines) > 1 else 0.0
    return float(lines[-1]["time/seconds"] - before)


def timeless(values: Line) -> Line:
    """The values that are equal in all attempts."""
    return {key: value for key, value in values.items() if not key.startswith(CLOCK)}


def _stored_lines(directory: RunDirectory) -> list[bytes]:
    """The whole lines of a first phase at the beginning of metrics.jsonl."""
    text = read_bytes(directory.metrics_file) or b""

    def is_whole_phase_line(line: bytes) -> bool:
        try:
            return line.endswith(b"\n") and "phase" in json.loads(line)
        except (ValueError, TypeError, RecursionError):  # cut off by a power failure
            return False

    return list(takewhile(is_whole_phase_line, text.splitlines(keepends=True)))
