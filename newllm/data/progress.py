"""A line on the terminal that counts; silent where nobody watches."""

import sys
import time


class Progress:
    """``what: 1,234,567 unit, 89,000/s``, at most ten times a second."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._watched = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        self._any = False

    def show(self, count: int) -> None:
        now = time.monotonic()
        if self._watched and now - self._shown > 0.1:
            rate = count / (now - self._started)
            print(f"\r{self._what}: {count:,} {self._unit}, {rate:,.0f}/s ", end="", file=sys.stderr, flush=True)
            self._shown, self._any = now, True

    def end(self) -> None:
        if self._any:
            print(file=sys.stderr)
