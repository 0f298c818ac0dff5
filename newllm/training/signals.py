"""Signals that stop a run cleanly: those of newllm.errors.STOPPING."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from newllm.errors import STOPPING, Interrupted


class Signals:
    """Turns the stopping signals into `Interrupted`: at once, or inside `deferred` at the next `check()`.

    Inside `deferred`, a second Ctrl-C ends the run at once; a second SIGTERM does not, since schedulers repeat it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferring = False

    @contextmanager
    def installed(self) -> Iterator["Signals"]:
        """Handle the signals within this block."""
        with handling(self.handle):
            yield self

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Delay signals until `check()` or the end of this block, for work that must not stop just anywhere."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal has been received."""
        if self.received is not None:
            signum, self.received = self.received, None
            raise Interrupted(signum)

    def note(self, signum: int) -> None:
        """Make the next `check()` raise."""
        self.received = self.received or signum

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler. While `Interrupted` unwinds, further signals change nothing."""
        error = sys.exception()
        while error is not None:
            if isinstance(error, Interrupted):
                return
            error = error.__context__
        second_ctrl_c = self.received is not None and signum == signal.SIGINT
        if not self._deferring or second_ctrl_c:
            raise Interrupted(signum)
        self.note(signum)


@contextmanager
def redelivered() -> Iterator[None]:
    """Raise the signal that has stopped the work in this block again, so that it has its usual effect for the caller:
    Ctrl-C becomes KeyboardInterrupt, and SIGTERM ends the process unless the caller handles it."""
    try:
        yield
        return
    except Interrupted as interrupted:
        stop = interrupted
    signal.raise_signal(stop.signum)
    raise stop


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Install `handler` for the stopping signals in this block, except for ignored ones. No-op outside the main thread,
    as Python requires."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [signum for signum in STOPPING if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, handler) for signum in handled}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)
