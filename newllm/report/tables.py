"""Tables: what is shown, what sorts, and what goes into the CSV file in full precision; and their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from newllm.analysis.run_groups import Group
from newllm.analysis.statistics import sample_std
from newllm.console import number
from newllm.store.csv_text import as_csv

ABSENT = "\u2013"  # a dash
PLUS_MINUS = "Mean ± sample standard deviation over seeds"

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": "$<$", ">": "$>$",
    "±": r"$\pm$", "·": r"$\cdot$", "\u2013": "--", "≥": r"$\ge$", "≤": r"$\le$", "\u00d7": r"$\times$",
    "\u03b1": r"$\alpha$", "Δ": r"$\Delta$", "²": "$^2$", "…": r"\ldots{}", "→": r"$\to$",
})  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """`text` is shown; `value` sorts; `exact` (CSV column -> value) goes into the CSV file.

    kind: what the page makes of it beyond text: "better", "worse", "open" (of a verdict), "muted", "long", "swatch-3".
    """

    text: str
    value: float | str | None = None
    exact: Mapping[str, Any] = field(default_factory=dict)
    bold: bool = False
    kind: str = ""
    hint: str = ""


Row = dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """`name` is the stem of its files; all rows have the same columns; `notes` stand below, `hints` explain columns."""

    name: str
    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    hints: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0])

    def numeric(self, column: str) -> bool:
        return not any(isinstance(row[column].value, str) for row in self.rows)


def text_cell(text: Any, column: str = "", **more: Any) -> Cell:
    """A cell of text; `column` is its name in the CSV file."""
    shown = ABSENT if text is None or text == "" else str(text)
    more.setdefault("kind", "muted" if shown == ABSENT else "")
    return Cell(shown, shown, {column: text} if column else {}, **more)


def number_cell(value: Any, column: str = "", text: str | None = None, **more: Any) -> Cell:
    """A cell of one number; a dash where it is absent or not finite."""
    exact = {column: value} if column else {}
    if value is None or not isfinite(value):
        return Cell(ABSENT, None, exact, kind="muted")
    return Cell(number(value) if text is None else text, float(value), exact, **more)


def interval(low: float, high: float, form: str) -> str:
    """`[-0.51, -0.49]`; a dash where it is not known."""
    return f"[{low:{form}}, {high:{form}}]" if isfinite(low) else ABSENT


def mean_cell(group: Group, metric: str) -> Cell:
    """The mean over seeds ± their sample standard deviation."""
    mean, std = group.mean(metric), sample_std([*group.by_seed(metric).values()])
    return number_cell(mean, f"{metric} mean", spread(mean, std))


def spread(mean: float, std: float) -> str:
    """`148.3 ± 2.1`: the mean to the place of the std's second digit; without an std (one seed) the mean alone."""
    if not isfinite(mean):
        return ABSENT
    if not isfinite(std) or std == 0:
        return number(mean) + (" ± 0" if std == 0 else "")
    places = next((n for n in range(6) if round(std * 10**n) >= 10), 6)
    return f"{mean:,.{places}f} ± {std:,.{places}f}"


def percent(ratio: float) -> str:
    """A relative difference as `+7.0 %`."""
    return f"{100 * ratio:+.{2 if abs(ratio) < 0.01 else 1}f} %" if isfinite(ratio) else ABSENT


def to_csv(table: Table) -> str:
    """One line per row; the columns are those that the cells name, in order of appearance."""
    return as_csv(
        [{key: value for cell in row.values() for key, value in cell.exact.items()} for row in table.rows], "\n"
    )


def to_markdown(table: Table) -> str:
    """A pipe table with its title and notes."""

    def shown(cell: Cell) -> str:
        text = cell.text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
        return f"**{text}**" if cell.bold else text

    columns = []
    for name in table.columns:
        texts, right = [name, *(shown(row[name]) for row in table.rows)], table.numeric(name)
        width = max(3, *map(len, texts))
        padded = [text.rjust(width) if right else text.ljust(width) for text in texts]
        columns.append([padded[0], "-" * (width - 1) + (":" if right else "-"), *padded[1:]])
    lines = ["| " + " | ".join(line) + " |" for line in zip(*columns, strict=True)]
    return "\n".join([f"### {table.title}", "", *lines, "", *(f"{note}  " for note in table.notes)]).rstrip() + "\n"


def to_latex(table: Table) -> str:
    r"""A table environment in the manner of booktabs; needs \usepackage{booktabs}."""

    def shown(cell: Cell) -> str:
        text = cell.text.translate(_LATEX)
        return rf"\textbf{{{text}}}" if cell.bold else text

    lines = [[name.translate(_LATEX) for name in table.columns], *(map(shown, row.values()) for row in table.rows)]
    head, *body = (f"    {' & '.join(line)} \\\\" for line in lines)
    return "\n".join([
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{' '.join([table.title + '.', *table.notes]).translate(_LATEX)}}}",
        rf"  \label{{tab:{table.name}}}",
        rf"  \begin{{tabular}}{{{''.join('r' if table.numeric(name) else 'l' for name in table.columns)}}}",
        r"    \toprule", head, r"    \midrule", *body, r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]) + "\n"  # fmt: skip


WRITERS = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
