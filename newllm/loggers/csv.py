"""A table of all steps, for spreadsheets."""

import csv
from collections.abc import Mapping
from pathlib import Path

from newllm.loggers.logger import Logger, Tracked
from newllm.store.atomic import write_text
from newllm.store.csv_text import as_csv


class Csv(Logger):
    """A row per step in `file` of the run directory, which is written again from the beginning when a run resumes."""

    def __init__(self, file: str = "metrics.csv", *, directory: Path) -> None:
        self.path = directory / file
        self._columns: list[str] = []

    def start(self, run: Tracked) -> int:
        write_text(self.path, "")
        return -1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        if new := [name for name in row if name not in self._columns]:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._columns += new
            write_text(self.path, as_csv([*rows, row]))
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def close(self) -> None:
        pass
