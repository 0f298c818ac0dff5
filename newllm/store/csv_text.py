"""Tables of results as CSV text, and whether two of them are equal."""

import csv
import io
from collections.abc import Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]
MEASURED = ("seconds", "peak_bytes")  # ends of names of columns that differ from pass to pass


def as_csv(rows: Rows, newline: str = "\r\n") -> str:
    """The columns are the keys of all rows, in order of appearance."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for row in rows for key in row)), restval="", lineterminator=newline
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_csv(text: str) -> list[dict[str, str]]:
    """The rows, every cell as text."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def same(one: str, other: str) -> bool:
    """Are all cells of two CSV texts equal, except for measured times and memory?"""
    return [_repeatable(row) for row in read_csv(one)] == [_repeatable(row) for row in read_csv(other)]


def _repeatable(row: dict[str, str]) -> dict[str, str]:
    return {key: cell for key, cell in row.items() if not key.endswith(MEASURED)}
