"""A sweep's runs as a table and sentences: for `newllm status`, for the live display, for a plan."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text

from newllm.sweep.run_names import short_names, signature_of
from newllm.sweep.survey import STATES, Line, counts

STYLES = {"running": "cyan", "failed": "red", "unreadable": "red", "interrupted": "yellow", "done": "green"}
_COLUMNS = (
    "run", "state", "step", "loss", "val ppl", "tokens/s", "elapsed", "left", "attempt", "job", "SLURM",
    "evaluated from",
)  # fmt: skip


def table(lines: Sequence[Line], fold: int | None = None, names: Mapping[str, str] | None = None) -> list[Text]:
    """A heading and a line per run, by state and then by name. Columns that would be empty are left out.

    fold: show this many runs of each state and say how many more there are; None shows all.
    names: short names of the runs, if there are more runs than these.
    """
    runs = names or short_names(line.name for line in lines if line.evaluated_from is None)
    ordered = sorted(lines, key=lambda line: (STATES.index(line.state), *map(_natural, _place(line))))
    rows: list[tuple[str, list[str]]] = []
    for state in STATES:
        here = [line for line in ordered if line.state == state]
        shown = here if fold is None or len(here) <= fold else here[:fold]
        rows += [(state, _cells(line, runs)) for line in shown]
        if len(shown) < len(here):
            more = f"… {len(here) - len(shown):,} more"
            rows.append((state, [more, state, *[""] * (len(_COLUMNS) - 2)]))
    kept = [i for i, _ in enumerate(_COLUMNS) if any(cells[i] for _, cells in rows)]
    heading, *texts = aligned(
        [[cells[i] for i in kept] for cells in (list(_COLUMNS), *(cells for _, cells in rows))],
        left=("run", "state", "attempt", "job", "SLURM", "evaluated from"),
    )
    styled = [(heading, "bold"), *((text, STYLES.get(state, "")) for text, (state, _) in zip(texts, rows, strict=True))]
    return [Text(text, style, no_wrap=True, overflow="ellipsis") for text, style in styled]


def aligned(rows: list[list[str]], left: Collection[str]) -> list[str]:
    """The rows, a heading first, as lines of equal columns; the columns named in `left` are aligned to the left.

    rich's own table takes milliseconds a row, and a sweep may have ten thousand.
    """
    columns = []
    for cells in map(list, zip(*rows, strict=True)):
        widths = [cell_len(cell) for cell in cells]
        pads = [" " * (max(widths) - width) for width in widths]
        pairs = zip(cells, pads, strict=True) if cells[0] in left else zip(pads, cells, strict=True)
        columns.append([a + b for a, b in pairs])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def total(lines: Iterable[Line]) -> str:
    """``12 runs: 2 running, 1 failed, 9 done``."""
    lines = list(lines)
    runs = [line for line in lines if line.evaluated_from is None]
    parts = ", ".join(f"{number:,} {state}" for state, number in counts(runs).items())
    more = len(lines) - len(runs)
    beside = f"; {plural(more, 'evaluation')} under other settings" if more else ""
    return f"{plural(len(runs), 'run')}: {parts}{beside}"


def errors(lines: Sequence[Line], fold: int | None = None) -> list[Text]:
    """What went wrong: each sentence once, with the names of its runs."""
    short = short_names(line.name for line in lines)
    by_sentence: dict[str, list[Line]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: (STATES.index(line.state), _natural(line.name))):
        if line.error and line.state not in ("running", "done"):
            by_sentence[line.error].append(line)
    said = [
        Text.assemble((_several([short[line.name] for line in runs]), STYLES.get(runs[0].state, "")), f": {sentence}")
        for sentence, runs in by_sentence.items()
    ]
    if fold is not None and len(said) > fold:
        return [*said[:fold], Text(f"… and {len(said) - fold:,} other errors")]
    return said


def advice(sweep: Path, lines: Sequence[Line]) -> list[str]:
    """What to type next, if anything is left to do."""
    said = []
    cut_off = sum(line.state == "interrupted" and not line.attended for line in lines)
    waiting = sum(line.state == "queued" and not line.attended for line in lines)
    failed = sum(line.state == "failed" for line in lines)
    if any(line.attended and line.slurm and line.slurm_state is None for line in lines):
        said.append("SLURM can't be asked here: what its runs do is what their status.json says.")
    if cut_off or waiting:
        parts = [f"{cut_off:,} interrupted"] * bool(cut_off) + [f"{waiting:,} queued"] * bool(waiting)
        gone = "" if any(line.attended for line in lines) else "The launcher is gone. "
        said.append(
            f"{gone}Nobody has {' and '.join(parts)} in hand: the same command, or "
            f"newllm status {sweep} --retry {'all' if failed else 'interrupted'}, continues."
        )
    if failed:
        name = short_names(line.name for line in lines)[next(line.name for line in lines if line.state == "failed")]
        said.append(f"Of the failed: newllm status {sweep} --logs {name} shows a log, --retry failed tries again.")
    return said


def clock(seconds: float | None) -> str:
    """``0:07``, ``12:34``, ``1:02:03``."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float | None) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``; ``?`` for None."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def plural(number: int, what: str) -> str:
    """``1 run``, ``12,000 runs``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def _place(line: Line) -> tuple[str, str]:
    """Where a line stands among others: an evaluation after its run."""
    return (line.evaluated_from, line.name) if line.evaluated_from else (line.name, "")


def _cells(line: Line, runs: Mapping[str, str]) -> list[str]:
    """The cells of _COLUMNS. runs: the short names of runs."""
    name = runs.get(line.name) or line.name.removesuffix(f"-{signature_of(line.name)}")
    step = f"{line.step:,}/{line.steps:,}" if line.step is not None and line.steps is not None else ""
    running = line.state == "running"
    if line.phase:
        step = f"phase 1: {step}"
    elif running and step and line.step == line.steps:
        step = "evaluating"
    return [
        name,
        line.state,
        step,
        f"{line.loss:.3f}" if line.loss is not None and running else "",
        f"{line.val_ppl:,.2f}" if line.val_ppl is not None else "",
        f"{line.tokens_per_second:,.0f}" if line.tokens_per_second and running else "",
        clock(line.seconds),
        clock(line.seconds_left),
        str(line.attempt) if line.attempt > 1 else "",
        line.slurm or "",
        line.slurm_state or "",
        runs.get(line.evaluated_from, line.evaluated_from) if line.evaluated_from else "",
    ]


def _several(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2:,} more"


def _natural(name: str) -> list[tuple[bool, float, str]]:
    """Order with s2 before s10."""
    return [(not part.isdigit(), float(part) if part.isdigit() else 0.0, part) for part in re.split(r"(\d+)", name)]
