"""`python -m newllm.report DIR [DIR …] [key=value …]`: tables, tests, figures and one page about many runs."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from newllm.config.catalog import shipped
from newllm.errors import ConfigError, run_command

if TYPE_CHECKING:  # pandas and the like are loaded when there is something to report
    from newllm.report.study import Section, Study
    from newllm.report.tables import Table

MOST_ROWS = 60  # of a table on the console
MOST_PROBLEMS = 10  # sentences on broken runs and files
WIDTH = 104  # characters of a table on the console
LONGEST_NAME = 44  # characters of a group's name there


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    if any(word in ("-h", "--help") for word in argv):
        print(_help())
        return 0
    if not argv:
        raise ConfigError("name a folder of runs, as in newllm report outputs; newllm report --help has the options.")
    make_report(argv)
    return 0


def make_report(words: Sequence[str]) -> "tuple[list[Section], list[Path]]":
    """Write the report that these folders and options describe, and print its summary; returns its sections and
    files."""
    from newllm.report.options import read_options

    options = read_options(words)
    from newllm.report.page import write_report
    from newllm.report.sections import make_sections
    from newllm.report.study import read_study

    study = read_study(options)
    sections = make_sections(study)
    written = write_report(study, sections)
    _print_summary(study, sections, written)
    return sections, written


def _print_summary(study: "Study", sections: "Sequence[Section]", written: Sequence[Path]) -> None:
    """The main tables, the rule for verdicts, the paths."""
    from newllm.analysis.frame import states_in_words
    from newllm.console import Console
    from newllm.report.result_tables import BEST_IS_BOLD

    console, by_name = Console(), {section.name: section for section in sections}
    for line in by_name["results"].lines:
        console.line(line)
    for table in by_name["results"].tables:
        rows, left_out = _fit_to_console(table)
        notes = [note.replace(BEST_IS_BOLD, "* marks the best mean") for note in table.notes]
        console.section(table.title, [rows, *left_out, *notes])
    if "comparisons" in by_name:
        console.line()
        for line in [study.options.rule.words, *by_name["comparisons"].lines]:
            console.line(line)
    if unfinished := states_in_words(study.frame[study.frame["state"] != "done"]):
        console.line(f"Without results: {unfinished}.")
    unreadable = study.frame[study.frame["state"] == "unreadable"]
    problems = [
        f"{run} is left out: {error}." for run, error in zip(unreadable["run"], unreadable["error"], strict=True)
    ]
    lost = study.frame[(study.frame["state"] == "interrupted") & study.frame["error"].notna()]
    problems += [f"{run}: {error}" for run, error in zip(lost["run"], lost["error"], strict=True)]
    damaged = dict.fromkeys(error for part in study.parts for group in part.groups for error in group.damaged)
    problems += [f"Not drawn: {error}." for error in damaged]
    for line in problems[:MOST_PROBLEMS]:
        console.line(line, style="yellow")
    if len(problems) > MOST_PROBLEMS:
        console.line(f"… and {len(problems) - MOST_PROBLEMS:,} more broken files.")
    console.line()
    if written[0].suffix == ".html":
        console.line(f"Page: {written[0]}", style="bold")
    console.line(f"{len(written)} files in {study.options.folder}")


def _fit_to_console(table: "Table") -> tuple[list[dict[str, str]], list[str]]:
    """The first rows with as many metrics as fit, and notes on what was left out. A star marks the best mean."""
    rows = [{name: f"{cell.text} *" if cell.bold else cell.text for name, cell in row.items()} for row in table.rows]
    names = shorten([row["group"] for row in rows], LONGEST_NAME)
    shortened = any(row["group"] != name for row, name in zip(rows, names, strict=True))
    rows = [{**row, "group": name} for row, name in zip(rows, names, strict=True)]
    columns: list[str] = []
    left_out: list[str] = []
    width = 0
    metrics = [name for name in table.columns if "/" in name and not name.startswith("Δ")]
    for name in sorted(table.columns, key=lambda name: name in metrics[1:]):  # the first metric is always shown
        width += max(len(text) for text in (name, *(row[name] for row in rows))) + 3
        (left_out if name in metrics[1:] and (left_out or width > WIDTH) else columns).append(name)
    notes = [f"… and {len(rows) - MOST_ROWS:,} more groups, in the files."] if len(rows) > MOST_ROWS else []
    if shortened:
        notes.append("Names of groups are shortened; the files have them whole.")
    if left_out:
        notes.append(f"Also in the files: {', '.join(left_out)}.")
    return [{name: row[name] for name in table.columns if name in columns} for row in rows[:MOST_ROWS]], notes


def shorten(names: Sequence[str], longest: int) -> list[str]:
    """The names with the middle of those that are longer left out; numbered if two would be equal."""
    head, tail = longest // 2 - 1, longest - longest // 2 - 2
    short = [name if len(name) <= longest else f"{name[:head]} … {name[-tail:]}" for name in names]
    return short if len(set(short)) == len(set(names)) else [f"{n}: {name}" for n, name in enumerate(short, 1)]


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
