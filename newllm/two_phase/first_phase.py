"""First phases: what is trained and frozen before the ordinary training of a run, and its lines in metrics.jsonl."""

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from newllm.data import Dataset
from newllm.run.stage import Stage, StageResult
from newllm.store.run_directory import RunDirectory
from newllm.training.context import Run

CLOCK = ("time/", "speed/")  # beginnings of the names of values that no two attempts share


@dataclass
class Outcome:
    """What a first phase leaves, beside the frozen weights in the model.

    lines: of metrics.jsonl, all of them. text: its console section. data: with the contexts that the second phase
    reads, where the first one has stored them.
    """

    metrics: dict[str, float]
    lines: list[dict[str, Any]]
    text: list[str]
    data: Dataset | None = None


class FirstPhase(Stage):
    """One way to train a part of the model before everything else.

    Its lines come first in metrics.jsonl, with its name under "phase" (see `write_lines`).
    """

    name: ClassVar[str]

    @abstractmethod
    def train(self, run: Run) -> Outcome:
        """Do the phase, resume it, or take its stored result. Leaves the part's weights in the model, frozen."""

    def report(self, run: Run, step: int, steps: int, lines: Sequence[dict[str, Any]]) -> None:
        """Say in status.json how far the phase is."""
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
    """Make metrics.jsonl begin with a phase's lines, of which an earlier attempt may have written some or all already.

    A line that is there is kept, whatever its times. So a run killed between a checkpoint and the line about it gets
    that line, and one whose stored phase has been deleted does the phase again below lines of its second phase, which
    stay. The first line that differs, or is missing, replaces all that come after it. ended: there will be no more.
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
    """Rows of tables/phase1.csv, one for each line, with the seconds that each took."""
    rows = []
    for number, line in enumerate(lines):
        row = {key.rpartition("/")[2]: value for key, value in line.items() if key != "phase"}
        rows.append({**row, "seconds": seconds_of(lines[: number + 1])})
    return rows


def seconds_of(lines: Sequence[dict[str, Any]]) -> float:
    """What the last of these lines took, whose clocks go on over all attempts."""
    before = lines[-2]["time/seconds"] if len(lines) > 1 else 0.0
    return float(lines[-1]["time/seconds"] - before)


def leading_bytes(directory: RunDirectory) -> int:
    """How many bytes of metrics.jsonl the lines of a first phase take; 0 where there are none."""
    return _leading(directory)[0][-1]


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    """The values that all attempts share."""
    return {key: value for key, value in values.items() if not key.startswith(CLOCK)}


def _leading(directory: RunDirectory) -> tuple[list[int], list[dict[str, Any]]]:
    """The lines with a phase that the file begins with, and the lengths in bytes of the first 0, 1, … of them."""
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
