"""Tables: the text that is shown, the value that sorts, and what the CSV file holds in full precision; their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from statistics import fmean
from typing import Any

from newllm.analysis.comparison import Comparison
from newllm.analysis.metrics import Scale
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
    """`text` is shown, `value` sorts, and `csv` (column -> value) goes into the CSV file.

    kind: its look on the page: "better", "worse" or "open" for a verdict, "muted", "long", or "swatch-3".
    """

    text: str
    value: float | str | None = None
    csv: Mapping[str, Any] = field(default_factory=dict)
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

    def csv_rows(self) -> list[dict[str, Any]]:
        """What the CSV file holds, in full precision: in each row a value per column that its cells name."""
        return [{key: value for cell in row.values() for key, value in cell.csv.items()} for row in self.rows]

    def numeric(self, column: str) -> bool:
        return not any(isinstance(row[column].value, str) for row in self.rows)


def make_row(values: Mapping[str, Any]) -> Row:
    """Makes a cell of each number and text, with the column's name in the CSV file too. Cells stay as they are."""
    row = {}
    for column, value in values.items():
        make = number_cell if isinstance(value, Real) else text_cell
        row[column] = value if isinstance(value, Cell) else make(value, column)
    return row


def text_cell(text: Any, column: str = "", **look: Any) -> Cell:
    """A cell of text; `column` is its name in the CSV file."""
    absent = text is None or text == ""
    shown = ABSENT if absent else str(text)
    return Cell(shown, shown, {column: text} if column else {}, **{"kind": "muted" if absent else "", **look})


def number_cell(value: Any, column: str, text: str | None = None) -> Cell:
    """A cell of one number, shown as `text`; a dash where it is missing or not finite."""
    if value is None or not isfinite(value):
        return Cell(ABSENT, None, {column: value}, kind="muted")
    return Cell(number(value) if text is None else text, float(value), {column: value})


def percent_cell(ratio: float, column: str) -> Cell:
    return number_cell(ratio, column, percent(ratio))


def mean_cell(group: Group, metric: str, *, bold: bool = False, text: str | None = None) -> Cell:
    """The mean over seeds ± their sample standard deviation; or `text` for the mean.

    Where seeds are missing the mean of the others is shown with their number. It stands in no file and sorts nowhere.
    """
    values, mean = [*group.by_seed(metric).values()], group.mean(metric)
    std, missing = sample_std(values), group.missing_words(metric)
    csv = {f"{metric} mean": mean, f"{metric} std": std}
    if isfinite(mean):
        constant = std == 0  # a count, such as parameters: ± 0 would say nothing
        return Cell(text or (number(mean) if constant else spread(mean, std)), mean, csv, bold=bold, hint=missing)
    if not missing:
        return Cell(ABSENT, None, csv, kind="muted")
    shown = f"{spread(fmean(values), std)} (of {len(values)} seeds)" if values else ABSENT
    return Cell(shown, None, dict.fromkeys(csv, ""), kind="muted", hint=f"of the seeds that are left: {missing}")


def spread(mean: float, std: float) -> str:
    """`148.3 ± 2.1`: the mean to the place of the std's second digit; without an std (one seed) the mean alone."""
    if not isfinite(mean):
        return ABSENT
    if not isfinite(std) or std == 0:
        return number(mean) + (" ± 0" if std == 0 else "")
    if not 1e-3 <= max(abs(mean), std) < 1e15:
        return f"{mean:.3g} ± {std:.2g}"
    places = next((n for n in range(6) if round(std * 10**n) >= 10), 6)
    return f"{mean:,.{places}f} ± {std:,.{places}f}"


def percent(ratio: float) -> str:
    """A relative difference as `+7.0 %`."""
    digits = "1e" if 0 < abs(ratio) < 5e-5 else "2f" if abs(ratio) < 0.01 else "1f" if abs(ratio) < 1e4 else "3g"
    return f"{100 * ratio:+.{digits}} %" if isfinite(ratio) else ABSENT


def difference_text(difference: float, scale: Scale) -> str:
    """A difference: in percent where it is a ratio, else in the metric's own unit."""
    return percent(difference) if scale == "log" else f"{difference:+.4g}" if isfinite(difference) else ABSENT


def difference_texts(comparison: Comparison) -> tuple[str, str]:
    """The difference and its interval."""
    ends = [difference_text(end, comparison.scale) for end in (comparison.low, comparison.high)]
    interval = f"[{', '.join(ends)}]" if isfinite(comparison.low) else ABSENT
    return difference_text(comparison.difference, comparison.scale), interval


def verdict_cell(comparison: Comparison) -> Cell:
    """The verdict, with the seeds that it would take where it is inconclusive, and with the interval where a rule that
    does not look at it says something else."""
    inconclusive, text = comparison.verdict == "inconclusive", comparison.verdict
    if isfinite(comparison.low) and inconclusive == comparison.excludes_zero:
        text += f" (the interval {'leaves out' if inconclusive else 'includes'} 0)"
    elif inconclusive and comparison.seeds_needed:
        text += f" (needs {comparison.seeds_needed:,} seeds)"
    return Cell(text, text, {"verdict": comparison.verdict}, kind=verdict_kind(comparison), hint=comparison.why)


def verdict_kind(comparison: Comparison) -> str:
    """The look of a verdict on the page."""
    return comparison.verdict if comparison.verdict in ("better", "worse") else "open"


def to_csv(table: Table) -> str:
    """One line per row; the columns are those that the cells name, in order of appearance. NaN is an empty cell."""

    def known(value: Any) -> Any:
        return "" if isinstance(value, float) and not isfinite(value) else value

    rows = [{key: known(value) for key, value in row.items()} for row in table.csv_rows()]
    return as_csv(rows, newline="\n")


def to_markdown(table: Table) -> str:
    """A Markdown table with its title and notes."""

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
    r"""A table environment in the style of booktabs; needs \usepackage{booktabs}."""

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
