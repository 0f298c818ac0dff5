"""`python -m newllm.report DIR [DIR …] [key=value …]`: tables, tests, figures and one page about many runs."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from newllm.config.catalog import shipped
from newllm.errors import run_command

if TYPE_CHECKING:  # pandas and the like are loaded when there is something to report
    from newllm.report.study import Section, Study
    from newllm.report.tables import Table

MOST_ROWS = 60  # of a table on the console
WIDTH = 104  # characters of a table on the console


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(_help())
        return 0
    from newllm.report.options import read

    options = read(argv)
    from newllm.report.page import write
    from newllm.report.sections import sections
    from newllm.report.study import read_study

    study = read_study(options)
    every = sections(study)
    _print(study, every, write(study, every))
    return 0


def _print(found: "Study", made: "Sequence[Section]", written: Sequence[Path]) -> None:
    """The main tables, the rule, the paths."""
    from newllm.console import Console

    console, shown = Console(), {section.name: section for section in made}
    for line in shown["results"].lines:
        console.line(line)
    for table in shown["results"].tables:
        rows, left_out = _fitting(table)
        console.section(table.title, [rows, *left_out, *table.notes])
    if "comparisons" in shown:
        console.line()
        for line in [found.options.rule.words, *shown["comparisons"].lines]:
            console.line(line)
    unfinished = found.frame["state"][found.frame["state"] != "done"].value_counts()
    if len(unfinished):
        console.line(f"Without results: {', '.join(f'{count} {state}' for state, count in unfinished.items())}.")
    console.line()
    if written[0].suffix == ".html":
        console.line(f"Page: {written[0]}", style="bold")
    console.line(f"{len(written)} files in {found.options.folder}")


def _fitting(table: "Table") -> tuple[list[dict[str, str]], list[str]]:
    """The first rows with as many of the metrics as fit, and what was left out; the best is marked by a star."""
    rows = [{name: f"{cell.text} *" if cell.bold else cell.text for name, cell in row.items()} for row in table.rows]
    width = {name: max(len(text) for text in (name, *(row[name] for row in rows))) + 3 for name in table.columns}
    metrics = [name for name in table.columns if "/" in name and not name.startswith("Δ")]
    free = WIDTH - sum(width[name] for name in table.columns if name not in metrics)
    fits = [name for i, name in enumerate(metrics) if i == 0 or sum(width[one] for one in metrics[: i + 1]) <= free]
    notes = [f"… and {len(rows) - MOST_ROWS:,} more groups, in the files."] if len(rows) > MOST_ROWS else []
    if len(fits) < len(metrics):
        notes.append(f"Also in the files: {', '.join(name for name in metrics if name not in fits)}.")
    shown = [name for name in table.columns if name in fits or name not in metrics]
    return [{name: row[name] for name in shown} for row in rows[:MOST_ROWS]], notes


def _help() -> str:
    """Usage, and the options with what conf/report.yaml says of them."""
    text = (shipped() / "report.yaml").read_text(encoding="utf-8")
    lines = [
        "newllm report DIR [DIR …] [key=value …]",
        "",
        "DIR is a folder of runs: a sweep, several sweeps, or one run. Writes into the first one's folder report/.",
        "",
    ]
    for name, default, comment in re.findall(r"^([a-z]\w*): *(.*?)(?: +#(.*))?$", text, re.MULTILINE):
        lines += [f"  {name}={default}", *([f"      {comment.strip()}"] if comment else [])]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
