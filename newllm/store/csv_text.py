"""Tables of results as CSV text, and a comparison of two of them."""

import csv
import io
from collections.abc import Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]
MEASURED = ("seconds", "peak_bytes")  # suffixes of columns that differ from one evaluation to the next


def as_csv(rows: Rows, newline: str = "\r\n") -> str:
    """The columns are the keys of all rows, in order of appearance."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for row in rows for key in row)), restval="", lineterminator=newline
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def equal_csv(a: str, b: str) -> bool:
    """True if all cells of two CSV texts are equal, except for measured times and memory."""

    def repeatable(text: str) -> list[dict[str, str]]:
        rows = csv.DictReader(io.StringIO(text, newline=""))
        return [{key: cell for key, cell in row.items() if not key.endswith(MEASURED)} for row in rows]

    return repeatable(a) == repeatable(b)
