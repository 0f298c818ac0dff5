"""A table before it is written: what is read, what sorts, and what goes into the CSV file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from newllm.console import number

ABSENT = "\u2013"  # a dash


@dataclass(frozen=True)
class Cell:
    """`text` is shown; `value` sorts; `exact` (CSV column -> value) goes into the CSV file in full precision.

    kind: what the page makes of it beyond text: "better", "worse", "open" (of a verdict), "muted", "swatch-3".
    """

    text: str
    value: float | str | None = None
    exact: Mapping[str, Any] = field(default_factory=dict)
    bold: bool = False
    kind: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Column:
    name: str
    numeric: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """`name` is the stem of its files; `notes` stand below it."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


def words(text: Any, column: str = "") -> Cell:
    """A cell of text; `column` is its name in the CSV file."""
    shown = ABSENT if text is None or text == "" else str(text)
    return Cell(shown, shown, {column: text} if column else {}, kind="muted" if shown == ABSENT else "")


def figure(value: Any, column: str = "", text: str | None = None, **more: Any) -> Cell:
    """A cell of one number; absent and not finite ones are a dash."""
    exact = {column: value} if column else {}
    if value is None or not isfinite(value):
        return Cell(ABSENT, None, exact, kind="muted")
    return Cell(number(value) if text is None else text, float(value), exact, **more)


def spread(mean: float, std: float, digits: int | None = None) -> str:
    """`148.3 ± 2.1`: the mean to the place of the std's second digit; without an std (one seed) the mean alone."""
    if not isfinite(mean):
        return ABSENT
    if not isfinite(std):
        return number(mean)
    if std == 0:
        return f"{number(mean)} ± 0"
    places = digits if digits is not None else decimals(std)
    return f"{mean:,.{places}f} ± {std:,.{places}f}"


def decimals(std: float) -> int:
    """Decimal places that show two significant digits of `std`, at most six."""
    places = 0
    while places < 6 and round(std * 10**places) < 10:
        places += 1
    return places


def percent(ratio: float) -> str:
    """A relative difference as `+7.0 %`."""
    if not isfinite(ratio):
        return ABSENT
    places = 2 if abs(ratio) < 0.01 else 1
    return f"{100 * ratio:+.{places}f} %"
