"""First phases: a part of the model is trained and frozen before ordinary training; their lines in metrics.jsonl."""

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from newllm.data import Dataset
from newllm.run.stage import Stage, StageResult
from newllm.store.run_directory import RunDirectory
from newllm.training.context import Run

CLOCK = ("time/", "speed/")  # prefixes of the values that differ between attempts


@dataclass
class Outcome:
    """The result of a first phase, besides the frozen weights in the model.

    lines: all its lines of metrics.jsonl. text: its console section. data: the dataset with stored contexts, if the
    second phase reads them.
    """

    metrics: dict[str, float]
    lines: list[dict[str, Any]]
    text: list[str]
    data: Dataset | None = None


class FirstPhase(Stage):
    """A way to train a part of the model before everything else.

    Its lines come first in metrics.jsonl, with its name as "phase" (see `write_lines`).
    """

    name: ClassVar[str]

    @abstractmethod
    def train(self, run: Run) -> Outcome:
        """Run or resume the phase, or load its stored result; leaves the part in the model, frozen."""

    def report(self, run: Run, step: int, steps: int, lines: Sequence[dict[str, Any]]) -> None:
        """Write the progress of the phase to status.json."""
        loss = lines[-1]["phase1/loss"] if lines else None
        run.directory.update_status(progress={"phase": self.name, "step": step, "steps": steps, "loss": loss})

    def run(self, run: Run) -> StageResult:
        outcome = self.train(run)
        write_lines(run.directory, outcome.lines, ended=True)
        run.directory.write_table("phase1", as_table(outcome.lines))
        run.console.section("Phase 1", outcome.text)
        run.console.title("Phase 2")
        return StageResult(outcome.metrics, outcome.data, leading_bytes(run.directory))


def write_lines(directory: RunDirectory, lines: Sequence[dict[str, Any]], ended: bool = False) -> None:
    """Make metrics.jsonl begin with a phase's lines, some or all of which an earlier attempt may have written.

    An equal line is kept, whatever its times. The first line that differs or is missing replaces everything after it.
    So a run killed between a checkpoint and its line gets that line, and repeating a phase whose files were deleted
    keeps the lines of the second phase. ended: these are all the lines of the phase.
    """
    lengths, found = _leading(directory)
    same = 0
    while same < min(len(found), len(lines)) and timeless(found[same]) == timeless(lines[same]):
        same += 1
    if same == len(lines) and not (ended and len(found) > same):
        return
    directory.truncate_metrics(lengths[same])
    for line in lines[same:]:
        directory.append_metrics(line)


def as_table(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of tables/phase1.csv: one per line, with the seconds it took."""
    rows = []
    for number, line in enumerate(lines):
        row = {key.rpartition("/")[2]: value for key, value in line.items() if key != "phase"}
        rows.append({**row, "seconds": seconds_of(lines[: number + 1])})
    return rows


def seconds_of(lines: Sequence[dict[str, Any]]) -> float:
    """Seconds between the last two lines; their clock includes all attempts."""
    before = lines[-2]["time/seconds"] if len(lines) > 1 else 0.0
    return float(lines[-1]["time/seconds"] - before)


def leading_bytes(directory: RunDirectory) -> int:
    """Bytes that the lines of a first phase take in metrics.jsonl."""
    return _leading(directory)[0][-1]


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are equal in all attempts."""
    return {key: value for key, value in values.items() if not key.startswith(CLOCK)}


def _leading(directory: RunDirectory) -> tuple[list[int], list[dict[str, Any]]]:
    """The phase lines at the beginning of metrics.jsonl, and the total bytes of the first 0, 1, … of them."""
    lengths, found = [0], []
    text = directory.metrics_file.read_bytes() if directory.metrics_file.exists() else b""
    for line in text.splitlines(keepends=True):
        try:
            values = json.loads(line)
        except ValueError:  # cut off by a power failure
            break
        if "phase" not in values or not line.endswith(b"\n"):
            break
        found.append(values)
        lengths.append(lengths[-1] + len(line))
    return lengths, found
