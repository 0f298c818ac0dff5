"""Progress of a running sweep: a live table on a terminal, elsewhere one line per start and end."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from newllm.console import number
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.packing import Packing
from newllm.sweep.run_names import short_names
from newllm.sweep.survey import observe
from newllm.sweep.table import clock, plural, table

SHOWN_ROWS = 40  # running runs in the live table
SHOWN_FAILURES = 20  # failures in the summary
REFRESH_SECONDS = 1.0
SUMMARY_SECONDS = 60.0  # between lines of counts without a terminal

_WORDS = {"done": "done", "failed": "failed", "interrupted": "interrupted", "elsewhere": "run by another process"}


class Display:
    """Reports on the runs of the folder `sweep`.

    Reads only the files of running runs, so that ten thousand queued ones cost nothing.
    """

    def __init__(self, sweep: Path, runs: Sequence[Path]) -> None:
        self._sweep, self._total, self._waiting = sweep, len(runs), len(runs)
        self._names = short_names(run.name for run in runs)
        self._console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._live: Live | None = None
        self._at_once = 1
        self._running: dict[Path, float] = {}  # run -> when it was started
        self._counts: Counter[str] = Counter()
        self._failures: list[tuple[Path, str | None]] = []
        self._seconds_of_done = 0.0
        self._began = self._last_shown = time.monotonic()

    @contextmanager
    def shown(self, slots: int, packing: Packing | None = None) -> Iterator[None]:
        """Show the live table (on a terminal) within this block and the summary after it. slots: concurrent workers."""
        size = packing.size if packing else 1
        self._at_once = min(slots * size, self._total)
        packed = f", in packs of up to {size} that train together" if size > 1 else ""
        at_once = self._at_once if packed else slots
        self._say(f"{plural(self._total, 'run')}, {at_once:,} at once{packed}, in {self._sweep}")
        for line in packing.notes if packing else ():
            self._say(line)
        if self._console.is_terminal:
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
            self._summary()

    def started(self, run: Path) -> None:
        self._running[run] = time.monotonic()
        if self._live is None:
            self._say(f"start  {self._names[run.name]}")

    def ended(self, run: Path, state: str, error: str | None, again: bool) -> None:
        """`again`: the run was queued again."""
        now = time.monotonic()
        name, seconds = self._names[run.name], now - self._running.pop(run, now)
        if again:
            self._say(f"again  {name}, which {state}" + (f": {error}" if error else ""), "yellow")
            return
        self._counts[state] += 1
        if state == "done":
            self._seconds_of_done += seconds
        if state == "failed":
            self._failures.append((run, error))
        if state == "failed" or (self._live is None and state != "queued"):
            more = _perplexity(run) if state == "done" else f": {error}" if error else ""
            style = "red" if state == "failed" else ""
            self._say(f"{_WORDS.get(state, state):<6} {name} after {clock(seconds)}{more}", style)

    def note(self, text: str) -> None:
        self._say(text, "bold")

    def tick(self, waiting: int) -> None:
        """Refresh the display if enough time has passed; `waiting` runs have not started."""
        self._waiting = waiting
        now = time.monotonic()
        if now - self._last_shown < (SUMMARY_SECONDS if self._live is None else REFRESH_SECONDS):
            return
        self._last_shown = now
        if self._live is None:
            self._say(self._counted())
            return
        lines = [replace(observe(RunDirectory(run)), state="running") for run in list(self._running)[:SHOWN_ROWS]]
        with suppress(OSError):
            self._live.update(Group(*table(lines, names=self._names), Text(), Text(self._counted())), refresh=True)

    def _counted(self) -> str:
        now = time.monotonic()
        text = ", ".join([*self._ended(), f"{len(self._running):,} running", f"{self._waiting:,} queued"])
        text += f"; {clock(now - self._began)} passed"
        if not self._seconds_of_done:
            return text
        mean = self._seconds_of_done / self._counts["done"]  # assumes that the remaining runs take as long
        under_way = [max(mean - (now - began), 0.0) for began in self._running.values()]
        left = max((sum(under_way) + self._waiting * mean) / self._at_once, *under_way, 0.0)
        return f"{text}, about {clock(left)} left"

    def _ended(self) -> list[str]:
        others = [f"{self._counts[state]:,} {word}" for state, word in _WORDS.items() if self._counts[state]]
        return others if self._counts["done"] else ["0 done", *others]

    def _summary(self) -> None:
        rest = self._total - sum(self._counts[state] for state in _WORDS)
        parts = [*self._ended(), *([f"{rest:,} queued"] if rest else [])]
        self._say(
            f"{plural(self._total, 'run')} in {clock(time.monotonic() - self._began)}: {', '.join(parts)}.", "bold"
        )
        for run, error in self._failures[:SHOWN_FAILURES]:
            log = next((file for file in (run / "train.log", run / "stderr.log") if file.exists()), run)
            self._say(f"  failed: {self._names[run.name]}: {error or 'unknown reason'} ({log})", "red")
        if len(self._failures) > SHOWN_FAILURES:
            self._say(f"  and {len(self._failures) - SHOWN_FAILURES:,} more")
        if self._counts["interrupted"]:
            self._say("The same command continues from here.")
        self._say(f"Next: newllm status {self._sweep}")
        if self._counts["done"]:
            self._say(f"      newllm report {self._sweep}")

    def _say(self, text: str, style: str = "") -> None:
        with suppress(OSError):
            self._console.print(Text(text, style=style), soft_wrap=True)


def _perplexity(run: Path) -> str:
    with suppress(ConfigError):
        ppl = RunDirectory(run).results().get("val/ppl")
        return f", val/ppl {number(ppl)}" if ppl is not None else ""
    return ""
