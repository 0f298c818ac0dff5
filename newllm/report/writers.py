"""Tables as files: CSV in full precision, Markdown and LaTeX as they are read."""

import csv
import io
from collections.abc import Iterable

from newllm.report.table import Cell, Table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": "$<$", ">": "$>$",
    "±": r"$\pm$", "·": r"$\cdot$", "\u2013": "--", "≥": r"$\ge$", "≤": r"$\le$", "\u00d7": r"$\times$",
    "\u03b1": r"$\alpha$", "Δ": r"$\Delta$", "²": "$^2$", "…": r"\ldots{}", "→": r"$\to$",
}  # fmt: skip


def to_csv(table: Table) -> str:
    """One line per row; the columns are those that the cells name, in order of appearance."""
    rows = [{key: value for cell in row for key, value in cell.exact.items()} for row in table.rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """A pipe table with its title and notes."""
    names = [column.name for column in table.columns]
    cells = [[_markdown(cell) for cell in row] for row in table.rows]
    widths = [max(3, *(len(line[i]) for line in [names, *cells])) for i in range(len(names))]
    numeric = [column.numeric for column in table.columns]
    rule = [("-" * (width - 1) + ":") if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    padded = [
        [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        for line in [names, *cells]
    ]
    lines = ["| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]]]
    return "\n".join([f"### {table.title}", "", *lines, "", *(f"{note}  " for note in table.notes)]).rstrip() + "\n"


def to_latex(table: Table) -> str:
    r"""A table environment in the manner of booktabs; needs \usepackage{booktabs}."""
    alignment = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex(' '.join([table.title + '.', *table.notes]))}}}",
        rf"  \label{{tab:{table.name}}}",
        rf"  \begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        f"    {_latex_row(latex(column.name) for column in table.columns)}",
        r"    \midrule",
        *(f"    {_latex_row(_latex_cell(cell) for cell in row)}" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """Plain text with everything escaped that LaTeX reads as a command."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    return rf"\textbf{{{latex(cell.text)}}}" if cell.bold else latex(cell.text)


def _markdown(cell: Cell) -> str:
    text = cell.text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return f"**{text}**" if cell.bold else text
