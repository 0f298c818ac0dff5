"""Tables of results as CSV text, and a comparison of two of them."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]
_NUMBER = re.compile(r"[+-]?(\d[\d,.]*([eE][+-]?\d+)?( ?%)?|inf|nan|)")  # also a lone sign
_FORMULA = re.compile(r"(^|;)(?=\s*[=+@\uff1d\uff0b\uff0d\uff20-]|[\t\r\n])")
MEASURED = ("seconds", "peak_bytes")  # suffixes of columns that differ from one evaluation to the next


def as_csv(rows: Rows, newline: str = "\r\n") -> str:
    """The columns are the keys of all rows, in order of appearance."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(text, lineterminator=newline)
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([_cell(row.get(column, "")) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """The value; what a spreadsheet would execute as a formula, also behind a semicolon, which separates the cells of a
    spreadsheet in many languages, is preceded by an apostrophe."""
    return _FORMULA.sub(r"\1'", value) if isinstance(value, str) and not _NUMBER.fullmatch(value) else value


def equal_csv(a: str, b: str) -> bool:
    """True if all cells of two CSV texts are equal, except for measured times and memory."""

    def repeatable(text: str) -> list[dict[str, str]]:
        rows = csv.DictReader(io.StringIO(text, newline=""))
        return [{key: cell for key, cell in row.items() if not key.endswith(MEASURED)} for row in rows]

    return repeatable(a) == repeatable(b)
