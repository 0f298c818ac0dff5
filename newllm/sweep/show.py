"""The plan of a sweep, for reading."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from newllm.sweep.estimate import Estimates
from newllm.sweep.plan import Job, Plan


def show(plan: Plan, whole: bool, console: Console | None = None) -> None:
    """Print a line on the plan; with `whole`, every run with its estimated cost, and the totals."""
    console = console or Console(highlight=False)
    if whole:
        _show_runs(plan, console)
    console.print(Text(summary(plan)), soft_wrap=True)
    for job in plan.jobs:
        if job.state == "unreadable" and job.known is not None:
            console.print(Text(f"{job.path.name} is left alone: {job.known.error}"), soft_wrap=True)


def summary(plan: Plan) -> str:
    """``36 combinations are 15 distinct runs: 3 done, 12 new; 12 to do. Folder: outputs/sweeps``"""
    number = len(plan.jobs)
    first = f"{number} run{'s' * (number != 1)}"
    if plan.asked != number:
        first = f"{plan.asked} combinations are {number} distinct run{'s' * (number != 1)}"
    states = ", ".join(f"{count} {state}" for state, count in sorted(plan.counts().items()))
    others = sum(job.known is not None and job.known.attended for job in plan.jobs)
    elsewhere = f" {others} of them belong to a launcher that is at work already." if others else ""
    return f"{first}: {states}; {len(plan.wanted)} to do.{elsewhere} Folder: {plan.sweep}"


def _show_runs(plan: Plan, console: Console) -> None:
    estimates = Estimates([plan.sweep, Path("outputs/runs")])
    times = [estimates.seconds(job.config) for job in plan.jobs]
    columns = _columns(plan.jobs)
    rows = []
    for job, seconds in zip(plan.jobs, times, strict=True):
        parameters = estimates.parameters(job.config)
        cells = [_value(job.config, column) for column in columns]
        rows.append([str(job.index), *cells, job.state, f"{parameters:,}" if parameters else "?", duration(seconds)])
    heading, *lines = _aligned([["run", *columns, "state", "parameters", "time"], *rows], {*columns, "state"})
    console.out(heading, style="bold", highlight=False)
    console.out("\n".join(lines), highlight=False)
    todo = [seconds for job, seconds in zip(plan.jobs, times, strict=True) if job.wanted]
    told = [seconds for seconds in todo if seconds is not None]
    if told:
        missing = f", and {len(todo) - len(told)} of unknown time" if len(told) < len(todo) else ""
        console.print(f"One after another: {duration(sum(told))} by the speed of finished runs{missing}.")


def _aligned(rows: list[list[str]], left: set[str]) -> list[str]:
    """The rows, a heading first, as lines of equal columns; those named in `left` are set to the left."""
    # rich's own table takes milliseconds a row, and a sweep may have ten thousand.
    columns = []
    for cells in map(list, zip(*rows, strict=True)):
        widths = [cell_len(cell) for cell in cells]
        widest = max(widths)
        pads = [" " * (widest - width) for width in widths]
        pairs = zip(cells, pads, strict=True) if cells[0] in left else zip(pads, cells, strict=True)
        columns.append([a + b for a, b in pairs])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _columns(jobs: tuple[Job, ...]) -> list[str]:
    """Choices that differ (model, encoding, attention in any case), keys of overrides that differ, the seed."""
    always = ("model", "pos_encoding", "attention")
    groups = dict.fromkeys(group for job in jobs for group in job.config["choices"])
    first = jobs[0].config if jobs else {}
    choices = [g for g in (*always, *(g for g in groups if g not in always)) if g in always or _differs(jobs, g)]
    keys = dict.fromkeys(str(line).partition("=")[0] for job in jobs for line in job.config["overrides"])
    given = [key for key in keys if key not in groups and key != "seed" and _differs(jobs, key)]
    return [*choices, *given, *(["seed"] if "seed" in first else [])]


def _differs(jobs: tuple[Job, ...], key: str) -> bool:
    return len({_value(job.config, key) for job in jobs}) > 1


def _value(config: Mapping[str, Any], key: str) -> str:
    if key in config["choices"]:
        chosen = config["choices"][key]
        return "+".join(map(str, chosen)) if isinstance(chosen, list) else str(chosen or "")
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``; ``?`` for None."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
