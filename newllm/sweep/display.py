"""Draws the runs of a sweep: a table for `newllm status`, and a live one, with a summary, while a launcher works."""

import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.text import Text

from newllm.console import Screen, number
from newllm.labels import LABELS
from newllm.labels import in_words as labels_in_words
from newllm.store.run_directory import RunDirectory
from newllm.store.run_names import natural, short_names, signature_in
from newllm.suggest import listed
from newllm.sweep.state import STATES, RunState, count_states, read_state

SHOWN_ROWS = 40  # running runs in the live table
SHOWN_FAILURES = 20  # failures in the summary
REFRESH_SECONDS = 1.0
SUMMARY_SECONDS = 60.0  # between lines of counts without a terminal

_STYLES = {"running": "cyan", "failed": "red", "unreadable": "red", "interrupted": "yellow", "done": "green"}
_LEFT = ("run", "state", "attempt", "job", "SLURM", "evaluated from", *LABELS)
_OUTCOMES = {"done": "done", "failed": "failed", "interrupted": "interrupted", "elsewhere": "run by another process"}


class Display:
    """Shows the progress of a launch: on a terminal a live table, elsewhere one line per start and end of a run; then a
    summary. The table keeps the runs that have ended, the best results first.

    Reads only the files of running runs, and of each run once when it has ended, so that ten thousand queued ones cost
    nothing.
    """

    def __init__(self, sweep: Path, runs: Sequence[Path]) -> None:
        self._sweep, self._total = sweep, len(runs)
        self._names = short_names(run.name for run in runs)
        self._console = Screen(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._live: Live | None = None
        self._at_once = 1
        self._running: dict[Path, float] = {}  # run -> when it was started
        self._outcomes: Counter[str] = Counter()
        self._failures: list[tuple[Path, str | None]] = []
        self._ended: dict[Path, RunState] = {}
        self._seconds_of_done = 0.0
        self._began = self._last_shown = time.monotonic()

    @contextmanager
    def shown(self, slots: int, pack_size: int = 1, notes: Sequence[str] = ()) -> Iterator[None]:
        """Show the live table (on a terminal) within this block and the summary after it.

        slots: concurrent workers. pack_size: most runs that a worker trains together. notes: lines to print first.
        """
        self._at_once = min(slots * pack_size, self._total)
        how = f"{slots:,} at once"
        if pack_size > 1:
            how = f"{self._at_once:,} at once, in packs of up to {pack_size} that train together"
        self._say(f"{plural(self._total, 'run')}, {how}, in {self._sweep}")
        for line in notes:
            self._say(line)
        if self._console.is_terminal and sys.stdout.isatty():  # FORCE_COLOR, as in notebooks, makes no terminal
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._last_shown -= REFRESH_SECONDS
            with suppress(OSError):  # here and below: the terminal may have been closed
                self._live.start()
        try:
            yield
        finally:
            if self._live is not None:
                with suppress(OSError):
                    self._live.stop()
                self._live = None
        self._summary()  # not if the launcher was killed: the runs are still saving then

    def started(self, run: Path) -> None:
        self._running[run] = time.monotonic()
        if self._live is None:
            self._say(f"start  {self._names[run.name]}")

    def ended(self, run: Path, state: str, error: str | None, again: bool) -> None:
        """`again`: the run has been queued again."""
        now = time.monotonic()
        name, seconds = self._names[run.name], now - self._running.pop(run, now)
        if again:
            self._say(f"again  {name}, which {state}" + (f": {error}" if error else ""), "yellow")
            return
        self._outcomes[state] += 1
        if state in STATES and state != "queued":
            self._ended[run] = replace(read_state(RunDirectory(run)), state=state, error=error)
        if state == "done":
            self._seconds_of_done += seconds
        if state == "failed":
            self._failures.append((run, error))
        if state == "failed" or (self._live is None and state != "queued"):
            more = f": {error}" if error else ""
            if state == "done" and (ppl := self._ended[run].val_ppl) is not None:
                more = f", val/ppl {number(ppl)}"
            style = "red" if state == "failed" else ""
            self._say(f"{_OUTCOMES.get(state, state):<6} {name} after {clock(seconds)}{more}", style)

    def note(self, text: str) -> None:
        self._say(text, "bold")

    def tick(self) -> None:
        """Refresh the display if enough time has passed."""
        now = time.monotonic()
        if now - self._last_shown < (SUMMARY_SECONDS if self._live is None else REFRESH_SECONDS):
            return
        self._last_shown = now
        counts = f"{self._counts()}; {clock(now - self._began)} passed"
        read = {run: replace(read_state(RunDirectory(run)), state="running") for run in [*self._running][:SHOWN_ROWS]}
        if left := self._seconds_left(now, read):
            counts += f", about {clock(left)} left"
        if self._live is None:
            self._say(counts)
            return
        rows = max(self._console.height - 4, 8)
        running = list(read.values())[: rows // 2 if self._ended else rows]
        lines = table([*running, *self._ended.values()], names=self._names)
        hidden = len(lines) - rows
        if hidden > 0:
            lines = [*lines[:rows], Text(f"… and {hidden:,} more that have ended")]
        with suppress(OSError):
            self._live.update(Group(*lines, Text(), Text(counts)), refresh=True)

    def _seconds_left(self, now: float, running: Mapping[Path, RunState]) -> float | None:
        """By what running runs say of themselves, and by the mean time of finished ones; None if neither is known."""
        done = self._outcomes["done"]
        times = [self._seconds_of_done / done] if done else []
        rests = []
        for run, began in self._running.items():
            state = running.get(run)
            own = state.seconds_left if state is not None and not state.phase else None
            if own is not None:
                rests.append(own)
                times += [] if done else [now - began + own]
            elif done:
                rests.append(max(times[0] - (now - began), 0.0))
        if not times:
            return None
        mean = sum(times) / len(times)  # assumes that queued runs take as long
        rests += [mean] * (len(self._running) - len(rests))
        return max((sum(rests) + self._queued * mean) / self._at_once, *rests, 0.0)

    @property
    def _queued(self) -> int:
        return self._total - len(self._running) - sum(self._outcomes[state] for state in _OUTCOMES)

    def _counts(self) -> str:
        """``3 done, 1 failed, 2 running, 4 queued``"""
        counts = {words: self._outcomes[state] for state, words in _OUTCOMES.items()}
        counts |= {"running": len(self._running), "queued": self._queued}
        return in_words({state: count for state, count in counts.items() if count or state == "done"})

    def _summary(self) -> None:
        duration = clock(time.monotonic() - self._began)
        self._say(f"{plural(self._total, 'run')} in {duration}: {self._counts()}.", "bold")
        for run, error in self._failures[:SHOWN_FAILURES]:
            log = next((file for file in (run / "train.log", run / "stderr.log") if file.exists()), run)
            self._say(f"  failed: {self._names[run.name]}: {error or 'unknown reason'} ({log})", "red")
        if len(self._failures) > SHOWN_FAILURES:
            self._say(f"  and {len(self._failures) - SHOWN_FAILURES:,} more")
        if self._outcomes["interrupted"]:
            self._say("The same command continues from here.")
        self._say(f"Next: newllm status {self._sweep}")
        if self._outcomes["done"]:
            self._say(f"      newllm report {self._sweep}")

    def _say(self, text: str, style: str = "") -> None:
        with suppress(OSError):
            self._console.print(Text(text, style=style), soft_wrap=True)


def page(sweeps: Mapping[Path, Sequence[RunState]], limit: int | None = None) -> Group:
    """The runs of each sweep as a table, with their counts, errors, and what to type next.

    limit: show this many runs of each state and this many errors; None shows all.
    """
    lines: list[Text] = []
    for sweep, runs in sweeps.items():
        trained = [run for run in runs if run.evaluated_from is None]
        counts = in_words(count_states(trained))
        extra = len(runs) - len(trained)
        evaluations = f"; {plural(extra, 'evaluation')} under other settings" if extra else ""
        lines += [Text(""), Text(str(sweep), style="bold")] if len(sweeps) > 1 else []
        lines += [*table(runs, limit), Text(""), Text(f"{plural(len(trained), 'run')}: {counts}{evaluations}")]
        lines += [Text(f"{key}: {text}") for key, text in _shared_labels(trained).items()]
        lines += [*_errors(runs, limit), *map(Text, _advice(sweep, runs))]
    return Group(*lines)


def table(runs: Sequence[RunState], limit: int | None = None, names: Mapping[str, str] | None = None) -> list[Text]:
    """A heading and a line per run, by state, result, and number or name; an evaluation under other settings follows
    its run.

    limit: show this many runs of each state and say how many more there are; None shows all.
    names: short names of the runs, if there are more runs than these.
    """
    if not runs:
        return []
    names = names or short_names(run.name for run in runs if run.evaluated_from is None)
    rows: list[dict[str, str]] = []
    styles = ["bold"]
    shared = _shared_labels([run for run in runs if run.evaluated_from is None])
    for state, group in groupby(_in_order(runs), key=lambda run: run.state):
        together = list(group)
        rows += [_row(run, names) | _labels(run, shared) for run in together[:limit]]
        if limit is not None and len(together) > limit:
            rows.append({"run": f"… {len(together) - limit:,} more", "state": state})
        styles += [_STYLES.get(state, "")] * (1 + len(rows) - len(styles))
    lines = zip(aligned(rows, _LEFT), styles, strict=True)
    return [Text(line, style, no_wrap=True, overflow="ellipsis") for line, style in lines]


def aligned(rows: Sequence[Mapping[str, str]], left: Collection[str]) -> list[str]:
    """A heading and the rows (column -> cell) as lines. Columns in `left` are aligned to the left; empty ones left out.

    rich's own table takes milliseconds a row, and a sweep may have ten thousand.
    """
    columns = []
    for column in dict.fromkeys(column for row in rows for column in row):
        cells = [column, *(row.get(column, "") for row in rows)]
        if any(cells[1:]):
            widths = [cell_len(cell) for cell in cells]
            widest = max(widths)
            pads = [" " * (widest - width) for width in widths]
            before, after = (cells, pads) if column in left else (pads, cells)
            columns.append([a + b for a, b in zip(before, after, strict=True)])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def clock(seconds: float | None) -> str:
    """``00:07``, ``12:34``, ``1:02:03``."""
    return "" if seconds is None else str(timedelta(seconds=round(seconds))).removeprefix("0:")


def in_words(counts: Mapping[str, int]) -> str:
    """``3 done, 1,200 queued``."""
    return ", ".join(f"{count:,} {state}" for state, count in counts.items())


def plural(count: int, noun: str) -> str:
    """``1 run``, ``12,000 runs``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _in_order(runs: Sequence[RunState]) -> list[RunState]:
    """By state, result, number and name, with s2 before s10; an evaluation after its run."""
    trained = {run.name: run for run in runs if run.evaluated_from is None}

    def order(run: RunState) -> tuple[Any, ...]:
        of = trained.get(run.evaluated_from or run.name, run)
        result = math.inf if of.val_ppl is None else of.val_ppl
        number = len(runs) if of.number is None else of.number
        own = natural(run.name) if run is not of else []
        return STATES.index(run.state), result, number, natural(of.name), own

    return sorted(runs, key=order)


def _shared_labels(runs: Sequence[RunState]) -> dict[str, str]:
    """The labels that several runs have in common."""
    shown = [_labels(run, {}) for run in runs]
    first = shown[0] if len(shown) > 1 else {}
    return {key: text for key, text in first.items() if all(one.get(key) == text for one in shown)}


def _labels(run: RunState, without: Collection[str]) -> dict[str, str]:
    return {key: text for key, text in labels_in_words(run.labels).items() if key not in without}


def _row(run: RunState, names: Mapping[str, str]) -> dict[str, str]:
    """Column -> cell. names: the short names of runs."""
    step = f"{run.step:,}/{run.steps:,}" if run.step is not None and run.steps is not None else ""
    running = run.state == "running"
    if run.phase:
        step = f"phase 1: {step}"
    elif running and step and run.step == run.steps:
        step = "evaluating"
    return {
        "#": "" if run.number is None else str(run.number),
        "run": names.get(run.name) or run.name.removesuffix(f"-{signature_in(run.name)}"),
        "state": run.state,
        "step": step,
        "loss": f"{run.loss:.3f}" if run.loss is not None and running else "",
        "val ppl": f"{run.val_ppl:,.2f}" if run.val_ppl is not None else "",
        "tokens/s": f"{run.tokens_per_second:,.0f}" if run.tokens_per_second and running else "",
        "elapsed": clock(run.seconds),
        "left": clock(run.seconds_left) if running else "",
        "attempt": str(run.attempt) if run.attempt > 1 else "",
        "job": run.slurm or "",
        "SLURM": run.slurm_state or "",
        "evaluated from": names.get(run.evaluated_from, run.evaluated_from) if run.evaluated_from else "",
    }


def _errors(runs: Sequence[RunState], limit: int | None) -> list[Text]:
    """What went wrong: each sentence once, with the names of its runs."""
    short = short_names(run.name for run in runs)
    by_error: dict[str, list[RunState]] = defaultdict(list)
    for run in _in_order(runs):
        if run.error and run.state != "running":
            later = "done, but an evaluation after the training failed: " if run.state == "done" else ""
            by_error[later + run.error].append(run)
    lines = []
    for error, failed in list(by_error.items())[:limit]:
        names = listed([short[run.name] for run in failed], 3)
        lines.append(Text.assemble((names, _STYLES.get(failed[0].state, "")), f": {error}"))
    return lines + [Text(f"… and {len(by_error) - len(lines):,} other errors")] * (len(by_error) > len(lines))


def _advice(sweep: Path, runs: Sequence[RunState]) -> list[str]:
    """What to type next, if anything is left to do."""
    advice = []
    failed = [run.name for run in runs if run.state == "failed"]
    unattended = count_states(
        run
        for run in runs
        if run.state in ("interrupted", "queued") and not run.attended and run.evaluated_from is None
    )
    if any(run.attended and run.slurm and run.slurm_state is None for run in runs):
        advice.append("SLURM does not answer here, so its runs are shown as their status.json says.")
    if unattended:
        gone = "" if any(run.attended for run in runs) else "The launcher is gone. "
        which = " and ".join(plural(count, f"{state} run") for state, count in unattended.items())
        advice.append(
            f"{gone}{which} {'has' if sum(unattended.values()) == 1 else 'have'} no process; continue with the same "
            f"command or with newllm status {sweep} --retry {'all' if failed else 'interrupted'}."
        )
    if failed:
        name = short_names(run.name for run in runs)[failed[0]]
        advice.append(f"Failed runs: newllm status {sweep} --logs {name} shows a log, --retry failed tries them again.")
    return advice
