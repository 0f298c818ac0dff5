"""Several runs in lock step: each goes its own way, as a generator, but for the training steps."""

import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from newllm.pack.step import PackedStep
from newllm.training.loop import Steps
from newllm.training.signals import Interrupted, Signals, handling
from newllm.training.step import Wanted

Run = Callable[[Signals], Steps[int]]
_LOOK_SECONDS = 0.5  # between two looks for runs that are to be cancelled


def together(runs: Sequence[Run], cancelled: Callable[[int], bool] = lambda number: False) -> list[int | BaseException]:
    """Do the runs, making their training steps at once; returns the exit status of each, or what it raised.

    A run that ends, in whatever way, leaves the others to go on. What fails in a common step fails all that are in it.
    A signal stops all of them; a run whose number is `cancelled` is stopped alone, as by SIGTERM.
    """
    return _Together(runs, cancelled).go()


class _Together:
    def __init__(self, runs: Sequence[Run], cancelled: Callable[[int], bool]) -> None:
        self._signals = [Signals() for _ in runs]
        self._steps = [run(signals) for run, signals in zip(runs, self._signals, strict=True)]
        self._cancelled = cancelled
        self._ends: dict[int, int | BaseException] = {}
        self._wanted: dict[int, Wanted] = {}
        self._active: int | None = None  # the run whose code is under way; None in a common step
        self._packed = PackedStep()
        self._looked = time.monotonic()

    def go(self) -> list[int | BaseException]:
        with handling(self._handle):
            for number, steps in enumerate(self._steps):
                try:
                    self._signals[number].check()
                except Interrupted as stop:  # before it has begun: it stays queued
                    self._ends[number] = stop.exit_status
                else:
                    self._advance(number, steps.send, None)
            while self._wanted:
                self._look()
                for number, act, value in self._make_steps():
                    self._advance(number, act, value)
        return [self._ends[number] for number in range(len(self._steps))]

    def _make_steps(self) -> list[tuple[int, Callable[[Any], Wanted], Any]]:
        wanted, self._wanted = self._wanted, {}
        try:
            made = self._packed(list(wanted.values()))
        except BaseException as error:  # an interruption too: each run is to say in its directory how it ended
            return [(number, self._steps[number].throw, error) for number in wanted]
        return [(number, self._steps[number].send, one) for number, one in zip(wanted, made, strict=True)]

    def _advance(self, number: int, act: Callable[[Any], Wanted], value: Any) -> None:
        """Let a run go on to the next step that it wants, or to its end."""
        self._active = number
        try:
            self._wanted[number] = act(value)
        except StopIteration as end:
            self._ends[number] = end.value
        except BaseException as error:
            self._ends[number] = error
        finally:
            self._active = None

    def _look(self) -> None:
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for number in self._wanted:
            if self._cancelled(number):
                self._signals[number].note(signal.SIGTERM)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        """Runs that wait for a step take note; the one whose code is under way does as it does alone."""
        again = signum == signal.SIGINT and any(signals.received for signals in self._signals)
        active = self._active
        for number, signals in enumerate(self._signals):
            if number != active:
                signals.note(signum)
        if active is not None:
            self._signals[active].handle(signum, frame)
        elif again:
            raise Interrupted(signum)
