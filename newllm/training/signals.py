"""Signals that end a run in good order: SIGTERM, SIGINT, and SIGUSR1 and SIGUSR2, which SLURM sends before the time
is up (SIGUSR2 is submitit's choice)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
STOPPING = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal asked the run to stop. No Exception, so that no handler of errors swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"Stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_status = 128 + signum


class Signals:
    """Turns the stopping signals into `Interrupted`: at once, or inside `deferred` at the next `check()`.

    Inside `deferred`, a second Ctrl-C ends the run at once; a second SIGTERM does not, since schedulers
    repeat it.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._received: int | None = None

    @contextmanager
    def installed(self) -> Iterator["Signals"]:
        """Handle the signals within this block. Outside the main thread Python allows no handlers: no-op."""
        with handling(self.handle):
            yield self

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let signals wait for `check()` or the end of this block, for work that must not break off
        anywhere."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    @property
    def received(self) -> bool:
        return self._received is not None

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._received is not None:
            signum, self._received = self._received, None
            raise Interrupted(signum)

    def note(self, signum: int) -> None:
        """Let the next `check()` raise."""
        self._received = self._received or signum

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """What is done when a signal comes: the handler."""
        again = self._received is not None and signum == signal.SIGINT
        if not self._deferring or again:
            raise Interrupted(signum)
        self.note(signum)


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have the stopping signals handled so within this block. Outside the main thread Python allows it not: no-op."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in STOPPING}
    try:
        yield
    finally:
        for signum, former in before.items():
            signal.signal(signum, former)
