"""What a bench has found, and the JSON file it is kept in."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from newllm.bench.machine import machine
from newllm.store.atomic import write_json


class Table(NamedTuple):
    """A table of text as it is shown: the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass
class Result:
    """What `measure` returns.

    metrics: flat names to numbers, words or lists of numbers: ``ratio/<peer>`` (how many times faster than the peer
    newllm is: median of the rounds), ``ratio/<peer>/min``, ``…/max``, ``seconds/<contestant>`` (of each round).
    tables: (title, columns, rows of text), to be read at 100 columns. notes: sentences below them.
    """

    metrics: dict[str, Any]
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=machine)

    def write(self, file: Path, bench: str) -> None:
        """The metrics at the top level of a JSON file, beside "bench", "machine", "tables" and "notes"."""
        tables = [Table(*table)._asdict() for table in self.tables]
        rest = {"bench": bench, "machine": self.machine, "tables": tables, "notes": list(self.notes)}
        write_json(file, {**self.metrics, **rest})
