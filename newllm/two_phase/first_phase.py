"""First phases: what is trained and frozen before the ordinary training of a run, and its lines in metrics.jsonl."""

import json
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from newllm.data import Dataset
from newllm.run.stage import Stage, StageResult
from newllm.store.run_directory import RunDirectory
from newllm.training.context import Run

CLOCK = ("time/", "speed/")  # beginnings of the names of values that no two attempts share

Table = list[dict[str, Any]]


@dataclass
class Outcome:
    """What a first phase leaves, beside the frozen weights in the model.

    table: tables/phase1.csv. body: lines of its console section. data: with the contexts that the second phase reads,
    where the first one has stored them.
    """

    metrics: dict[str, float]
    table: Table
    body: list[str]
    data: Dataset | None = None


class FirstPhase(Stage):
    """One way to train a part of the model before everything else.

    Its lines come first in metrics.jsonl and have its name under "phase"; `Lines` keeps them right whatever an earlier
    attempt has left there, and touches none that come after them.
    """

    name: ClassVar[str]

    @abstractmethod
    def train(self, run: Run) -> Outcome:
        """Do the phase, resume it, or take its stored result. Leaves the part's weights in the model, frozen."""

    def run(self, run: Run) -> StageResult:
        outcome = self.train(run)
        run.directory.write_table("phase1", outcome.table)
        run.console.section("Phase 1", outcome.body)
        run.console.title("Phase 2")
        return StageResult(outcome.metrics, outcome.data, leading_bytes(run.directory))


class Lines:
    """Writes a phase's lines where an earlier attempt may have written some or all of them already.

    A line that is there is kept, whatever its times. So a run killed between a checkpoint and the line about it
    gets that line, and one whose stored phase has been deleted does the phase again below lines of its second phase,
    which stay. The first line that differs, or is missing, replaces all that come after it.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._lengths, self._found = _leading(directory)
        self._count = 0

    def add(self, line: dict[str, Any]) -> None:
        """The phase's next line."""
        if self._count < len(self._found) and timeless(self._found[self._count]) == timeless(line):
            self._count += 1
            return
        self._cut()
        self._directory.append_metrics(line)
        self._count, self._found = 0, []  # what has been cut off need not be compared again
        self._lengths = [self._directory.metrics_file.stat().st_size]

    def end(self) -> None:
        """There are no more lines of this phase."""
        if self._count < len(self._found):
            self._cut()

    def _cut(self) -> None:
        file, length = self._directory.metrics_file, self._lengths[self._count]
        if (file.stat().st_size if file.exists() else 0) != length:
            self._directory.truncate_metrics(length)


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
