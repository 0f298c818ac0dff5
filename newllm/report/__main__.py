"""`python -m newllm.report DIR [DIR …] [key=value …]`: tables, tests, figures and one page about many runs."""

import re
import sys
from typing import TYPE_CHECKING

from newllm.cli import guarded
from newllm.config.catalog import shipped

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from newllm.console import Console
    from newllm.report.section import Section
    from newllm.report.study import Study
    from newllm.report.table import Table


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(_help())
        return 0
    from newllm.report.options import read

    request = read(argv)
    from newllm.console import Console
    from newllm.report.sections import sections
    from newllm.report.study import study
    from newllm.report.write import write

    found = study(request)
    made = sections(found, figures=bool({"html", "svg", "png"} & {*found.options.formats}))
    written = write(found, made)

    _print(Console(), found, made, written)
    return 0


MOST_ROWS = 60  # of a table on the console
WIDTH = 104  # letters of a table on the console


def _print(console: "Console", found: "Study", made: "Sequence[Section]", written: "Sequence[Path]") -> None:
    """The main tables, the rule, the paths."""
    shown = {section.name: section for section in made}
    for line in shown["results"].lines:
        console.line(line)
    for table in shown["results"].tables:
        rows, left_out = _fitting(table)
        console.section(table.title, [rows[:MOST_ROWS], *left_out, *table.notes])
    if "comparisons" in shown:
        console.line()
        for line in [found.request.rule.words, *shown["comparisons"].lines]:
            console.line(line)
    if len(found.unfinished):
        counts = found.unfinished["state"].value_counts().items()
        console.line(f"Without results: {', '.join(f'{count} {state}' for state, count in counts)}.")
    console.line()
    if written[0].suffix == ".html":
        console.line(f"Page: {written[0]}", style="bold")
    console.line(f"{len(written)} files in {found.request.out}")


def _fitting(table: "Table") -> tuple[list[dict[str, str]], list[str]]:
    """The rows with as many of the metrics as fit, and what was left out; the best is marked by a star."""
    texts = [[f"{cell.text} *" if cell.bold else cell.text for cell in row] for row in table.rows]
    names = [column.name for column in table.columns]
    widths = [max(len(text) for text in column) + 3 for column in zip(names, *texts, strict=True)]
    metrics = [i for i, name in enumerate(names) if "/" in name and not name.startswith("Δ")]
    free = WIDTH - sum(width for i, width in enumerate(widths) if i not in metrics)
    kept = [i for place, i in enumerate(metrics) if sum(widths[j] for j in metrics[: place + 1]) <= free or place == 0]
    columns = [i for i in range(len(names)) if i not in metrics or i in kept]
    notes = [f"… and {len(texts) - MOST_ROWS:,} more groups, in the files."] if len(texts) > MOST_ROWS else []
    if len(kept) < len(metrics):
        notes.append(f"In the files also: {', '.join(names[i] for i in metrics if i not in kept)}.")
    return [{names[i]: row[i] for i in columns} for row in texts], notes


def _help() -> str:
    """Usage, and the options with what conf/report.yaml says of them."""
    text = (shipped() / "report.yaml").read_text(encoding="utf-8")
    known = re.findall(r"^(\w+): *(.*?)(?: +#(.*))?$", text, re.MULTILINE)
    lines = [
        "newllm report DIR [DIR …] [key=value …]",
        "",
        "DIR is a folder of runs: a sweep, several sweeps, or one run. Writes into the first one's folder report/.",
        "",
    ]
    for name, default, comment in known:
        if not name.startswith("_"):
            lines += [f"  {name}={default}", *([f"      {comment.strip()}"] if comment else [])]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
