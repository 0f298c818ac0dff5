"""The table of a sweep's runs as lines of text, for a terminal or a pipe."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.text import Text

from newllm.sweep.runs import short_names, signature_of
from newllm.sweep.state import STATES, Line, counts

STYLES = {
    "running": "cyan",
    "failed": "red",
    "unreadable": "red",
    "interrupted": "yellow",
    "queued": "",
    "done": "green",
}
_RIGHT = ("step", "loss", "val ppl", "tokens/s", "elapsed", "left")


def table(lines: Sequence[Line], fold: int | None = None) -> list[Text]:
    """A heading and a line per run, by state and then by name; columns that would be empty are left out.

    fold: of each state, show so many runs and say how many more there are; None shows all.
    """
    runs = short_names(line.name for line in lines if line.evaluated_from is None)
    evaluations = [line.name for line in lines if line.evaluated_from is not None]
    short = {**{name: name.removesuffix(f"-{signature_of(name)}") for name in evaluations}, **runs}
    ordered = sorted(lines, key=lambda line: (STATES.index(line.state), *map(_natural, _place(line))))
    rows: list[tuple[str, dict[str, str]]] = []
    for state in STATES:
        here = [line for line in ordered if line.state == state]
        shown = here if fold is None or len(here) <= fold else here[:fold]
        rows += [(state, _cells(line, short[line.name], runs)) for line in shown]
        if len(shown) < len(here):
            rows.append((state, {"run": f"… {len(here) - len(shown):,} more", "state": state}))
    names = _cells(ordered[0], "", runs) if ordered else {}
    columns = [name for name in names if any(cells.get(name) for _, cells in rows)]
    width = {name: max(len(name), *(len(cells.get(name, "")) for _, cells in rows)) for name in columns}

    def line(cells: dict[str, str]) -> str:
        words = [
            cells.get(name, "").rjust(width[name]) if name in _RIGHT else cells.get(name, "").ljust(width[name])
            for name in columns
        ]
        return "  ".join(words).rstrip()

    heading = Text(line({name: name for name in columns}), "bold", no_wrap=True, overflow="ellipsis")
    return [heading, *(Text(line(cells), STYLES[state], no_wrap=True, overflow="ellipsis") for state, cells in rows)]


def total(lines: Iterable[Line]) -> str:
    """``12 runs: 2 running, 1 failed, 9 done``."""
    lines = list(lines)
    runs = [line for line in lines if line.evaluated_from is None]
    parts = ", ".join(f"{number:,} {state}" for state, number in counts(runs).items())
    more = len(lines) - len(runs)
    beside = f"; {more:,} evaluation{'s' * (more != 1)} under other settings" if more else ""
    return f"{len(runs):,} run{'s' * (len(runs) != 1)}: {parts}{beside}"


def errors(lines: Sequence[Line], fold: int | None = None) -> list[Text]:
    """What went wrong: each sentence once, with the runs that it befell."""
    short = short_names(line.name for line in lines)
    befell: dict[str, list[Line]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: (STATES.index(line.state), _natural(line.name))):
        if line.error and line.state not in ("running", "done"):
            befell[line.error].append(line)
    said = [
        Text.assemble((_several([short[line.name] for line in runs]), STYLES[runs[0].state]), f": {sentence}")
        for sentence, runs in befell.items()
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


def _place(line: Line) -> tuple[str, str]:
    """Where a line stands among others: an evaluation after its run."""
    return (line.evaluated_from, line.name) if line.evaluated_from else (line.name, "")


def _cells(line: Line, name: str, runs: Mapping[str, str]) -> dict[str, str]:
    """runs: the short names of runs."""
    step = f"{line.step:,}/{line.steps:,}" if line.step is not None and line.steps is not None else ""
    step = f"phase 1: {step}" if line.phase else step
    return {
        "run": name,
        "state": line.state,
        "step": step,
        "loss": f"{line.loss:.3f}" if line.loss is not None and line.state == "running" else "",
        "val ppl": f"{line.val_ppl:,.2f}" if line.val_ppl is not None else "",
        "tokens/s": f"{line.tokens_per_second:,.0f}" if line.tokens_per_second and line.state == "running" else "",
        "elapsed": clock(line.seconds),
        "left": clock(line.seconds_left),
        "attempt": str(line.attempt) if line.attempt > 1 else "",
        "job": line.slurm or "",
        "SLURM": line.slurm_state or "",
        "evaluated from": runs.get(line.evaluated_from, line.evaluated_from) if line.evaluated_from else "",
    }


def _several(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2:,} more"


def _natural(name: str) -> list[tuple[bool, float, str]]:
    """Order with s2 before s10."""
    return [(not part.isdigit(), float(part) if part.isdigit() else 0.0, part) for part in re.split(r"(\d+)", name)]
