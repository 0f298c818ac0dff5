"""What a user sees of a sweep under way: a live table on a terminal, elsewhere a line for each start and end."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from newllm.console import number
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.listing import clock
from newllm.sweep.outcome import Fate
from newllm.sweep.packing import Packing
from newllm.sweep.runs import short_names

SHOWN_ROWS = 40  # of running runs in the live table
SHOWN_FAILURES = 20  # in the summary
SUMMARY_SECONDS = 60.0  # between two lines of counts, where there is no terminal
REFRESH_SECONDS = 1.0

WORDS: dict[Fate, str] = {
    "done": "done",
    "failed": "failed",
    "interrupted": "interrupted",
    "elsewhere": "in other hands",
}


class Display:
    """Tells of the runs of the folder `sweep`; only files of running runs are read, so that many queued ones cost
    nothing."""

    def __init__(self, sweep: Path, runs: Sequence[Path]) -> None:
        self._sweep, self._total = sweep, len(runs)
        self._names = short_names(run.name for run in runs)
        self._console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._live: Live | None = None
        self._slots = 1
        self._running: dict[Path, _Progress] = {}
        self._counts: Counter[Fate] = Counter()
        self._failures: list[tuple[Path, str | None]] = []
        self._durations = 0.0  # seconds of all runs done
        self._began = self._told = time.monotonic()
        self._refreshed = 0.0
        self._waiting = len(runs)

    @contextmanager
    def shown(self, slots: int, packing: Packing | None = None) -> Iterator[None]:
        """The live table, on a terminal, while the block lasts; then the summary. slots: workers at once."""
        size = packing.size if packing else 1
        self._slots = min(slots * size, self._total)
        packed = f", in packs of up to {size} that train together" if size > 1 else ""
        self._say(f"{_runs(self._total)}, {self._slots if packed else slots:,} at once{packed}, in {self._sweep}")
        for line in packing.notes if packing else ():
            self._say(line)
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            with suppress(OSError):  # here and below: the terminal may have been closed
                self._live.start()
        try:
            yield
        finally:
            if self._live is not None:
                with suppress(OSError):
                    self._live.stop()
                self._live = None
            self._summary()

    def started(self, run: Path) -> None:
        self._running[run] = _Progress(run)
        if self._live is None:
            self._say(f"start  {self._name(run)}")

    def ended(self, run: Path, fate: Fate, error: str | None, again: bool) -> None:
        progress = self._running.pop(run, None)
        seconds = progress.seconds if progress else 0.0
        if again:
            self._say(f"again  {self._name(run)}, which {fate}" + (f": {error}" if error else ""), "yellow")
            return
        self._counts[fate] += 1
        if fate == "done" and progress:
            self._durations += seconds
        if fate == "failed":
            self._failures.append((run, error))
        if fate == "failed" or (self._live is None and fate != "queued"):
            more = _perplexity(run) if fate == "done" else f": {error}" if error else ""
            style = "red" if fate == "failed" else ""
            self._say(f"{WORDS[fate]:<6} {self._name(run)} after {clock(seconds)}{more}", style)

    def note(self, text: str) -> None:
        self._say(text, "bold")

    def tick(self, waiting: int) -> None:
        """Refresh what is shown, not more often than needs be."""
        self._waiting = waiting
        now = time.monotonic()
        if self._live is not None and now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = now
            for progress in self._running.values():
                progress.read()
            with suppress(OSError):
                self._live.update(self._table(), refresh=True)
        elif self._live is None and now - self._told >= SUMMARY_SECONDS:
            self._told = now
            self._say(self._counted())

    def _table(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        table.add_column("run", overflow="ellipsis", no_wrap=True)
        for name in ("state", "step", "loss", "tokens/s", "time", "left"):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        for run, progress in list(self._running.items())[:SHOWN_ROWS]:
            table.add_row(Text(self._name(run)), *progress.cells())
        return Group(table, Text(self._counted()))

    def _counted(self) -> str:
        parts = [f"{self._counts['done']:,} done", *self._not_done()]
        parts += [f"{len(self._running):,} running", f"{self._waiting:,} queued"]
        left = self._left()
        passed = f"{clock(time.monotonic() - self._began)} passed"
        return ", ".join(parts) + f"; {passed}" + (f", about {clock(left)} left" if left is not None else "")

    def _not_done(self) -> list[str]:
        return [
            f"{self._counts[fate]:,} {word}" for fate, word in WORDS.items() if self._counts[fate] and fate != "done"
        ]

    def _left(self) -> float | None:
        """Seconds until the end, if the runs to come take as long as those done."""
        if not self._counts["done"] or not self._durations:
            return None
        mean = self._durations / self._counts["done"]
        under_way = [max(mean - progress.seconds, 0.0) for progress in self._running.values()]
        return max((sum(under_way) + self._waiting * mean) / self._slots, max(under_way, default=0.0))

    def _summary(self) -> None:
        rest = self._total - sum(count for fate, count in self._counts.items() if fate != "queued")
        parts = [f"{self._counts['done']:,} done", *self._not_done(), *([f"{rest:,} queued"] if rest else [])]
        self._say(f"{_runs(self._total)} in {clock(time.monotonic() - self._began)}: {', '.join(parts)}.", "bold")
        for run, error in self._failures[:SHOWN_FAILURES]:
            log = next((file for file in (run / "train.log", run / "stderr.log") if file.exists()), run)
            self._say(f"  failed: {self._name(run)}: {error or 'no reason is known'} ({log})", "red")
        if len(self._failures) > SHOWN_FAILURES:
            self._say(f"  and {len(self._failures) - SHOWN_FAILURES:,} more")
        if self._counts["interrupted"]:
            self._say("The same command goes on from here.")
        self._say(f"Next: newllm status {self._sweep}")
        if self._counts["done"]:
            self._say(f"      newllm report {self._sweep}")

    def _say(self, text: str, style: str = "") -> None:
        with suppress(OSError):
            self._console.print(Text(text, style=style), soft_wrap=True)

    def _name(self, run: Path) -> str:
        return self._names.get(run.name, run.name)


class _Progress:
    """How far a running run has got, by its status.json."""

    def __init__(self, run: Path) -> None:
        self._directory = RunDirectory(run)
        self._began = time.monotonic()
        self._first: tuple[float, int] | None = None  # when which step was first seen
        self._state = "starting"
        self._step = self._steps = 0
        self._loss: float | None = None
        self._speed: float | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def read(self) -> None:
        with suppress(ConfigError):
            status = self._directory.status()
            progress = status.get("progress") or {}
            if status.get("state") != "running" or not progress.get("steps"):
                return
            self._step, self._steps = int(progress["step"]), int(progress["steps"])
            self._loss, self._speed = progress.get("loss"), progress.get("tokens_per_second")
            state = "training" if self._step < self._steps else "evaluating"
            state = "phase 1" if progress.get("phase") else state
            if state != self._state:
                self._state, self._first = state, (time.monotonic(), self._step)

    def cells(self) -> list[str]:
        """State, step, loss, tokens/s, time, time left."""
        step = f"{self._step:,}/{self._steps:,}" if self._steps else ""
        left = ""
        if self._first and self._step > self._first[1]:
            rate = (self._step - self._first[1]) / (time.monotonic() - self._first[0])
            left = clock((self._steps - self._step) / rate)
        loss = f"{self._loss:.3f}" if self._loss is not None else ""
        return [self._state, step, loss, f"{self._speed:,.0f}" if self._speed else "", clock(self.seconds), left]


def _runs(number: int) -> str:
    return f"{number:,} run{'s' * (number != 1)}"


def _perplexity(run: Path) -> str:
    with suppress(ConfigError):
        ppl = RunDirectory(run).results().get("val/ppl")
        return f", val/ppl {number(ppl)}" if ppl is not None else ""
    return ""
