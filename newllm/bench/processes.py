"""Contestants in processes of their own, which take turns.

Each is then set up as its users run it: allocator, threads and compiler of one do not touch the others. While one
works the others wait at a pipe.
"""

import signal
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

from newllm.bench.timing import per_call, turns
from newllm.errors import ConfigError, NewllmError, RunError

Build = Callable[[], Callable[[], object]]  # makes what is timed; to be pickled, so a function of a module or a partial
_GRACE = 3.0  # seconds for a process to leave of itself


@dataclass
class _Child:
    name: str
    process: BaseProcess
    pipe: Connection

    def ask(self, what: str, argument: object) -> Any:
        """Its answer. Raises the error it reports, or RunError if it is no more."""
        try:
            self.pipe.send((what, argument))
            return self.answer()
        except BrokenPipeError:
            raise self.epitaph() from None

    def answer(self) -> Any:
        try:
            failed, found = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self.epitaph() from None
        if isinstance(failed, NewllmError):
            raise failed
        if failed:
            raise RunError(f"{self.name} failed: {failed}")
        return found

    def end(self) -> None:
        """It leaves when the pipe closes, or, where it still builds, is made to: it holds nothing to be lost."""
        self.pipe.close()
        self.process.join(_GRACE)
        self.process.kill()
        self.process.join()

    def epitaph(self) -> RunError:
        self.process.join(_GRACE)
        status = self.process.exitcode
        if status is None or status >= 0:
            return RunError(f"the process of {self.name} ended by itself with exit status {status}")
        memory = ", as the system does when memory runs out: try a smaller batch_size" * (status == -signal.SIGKILL)
        return RunError(f"the process of {self.name} was killed by {signal.Signals(-status).name}{memory}")


class Processes:
    """``with Processes(contestants) as processes: processes.alternate(rounds, calls)``.

    Building and the first call, in which compilers work, happen on entry. An `optional` contestant that fails in them
    is left out, and `left_out` says why; the failure of any other is raised.
    """

    def __init__(self, contestants: Mapping[str, Build], optional: Collection[str] = ()) -> None:
        self.left_out: dict[str, str] = {}
        self._builds, self._optional = dict(contestants), set(optional)
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Self:
        context = get_context("spawn")  # a fork would take over threads and allocator settings
        try:
            for name, build in self._builds.items():
                pipe, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, build), name=name, daemon=True)
                process.start()
                theirs.close()
                self._children[name] = _Child(name, process, pipe)
            for name in self._builds:
                self._await(name)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def alternate(self, rounds: int, calls: int) -> dict[str, list[float]]:
        """Seconds per call, one figure a round and contestant.

        In each round every contestant makes one untimed call, since the caches hold another's data, and `calls` timed
        ones, in changing order.
        """
        seconds: dict[str, list[float]] = {name: [] for name in self._children}
        for order in turns(list(self._children), rounds):
            for name in order:
                seconds[name].append(self._children[name].ask("time", calls))
        return seconds

    def do(self, function: Callable[[], object]) -> None:
        """Have every contestant's process call a function of a module."""
        for child in self._children.values():
            child.ask("do", function)

    def _await(self, name: str) -> None:
        try:
            self._children[name].answer()
        except NewllmError as error:
            if name not in self._optional or isinstance(error, ConfigError):
                raise
            self.left_out[name] = str(error)
            self._children.pop(name).end()

    def _end(self) -> None:
        for child in self._children.values():
            child.pipe.close()  # all leave at once
        while self._children:
            self._children.popitem()[1].end()


def _serve(pipe: Connection, build: Build) -> None:
    """In the child: build, call once, then do as told until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    with suppress(EOFError, BrokenPipeError):
        try:
            call = build()
            call()
            pipe.send((None, None))
            while True:
                what, argument = pipe.recv()
                if what == "do":
                    argument()
                    call()  # untimed: settles what the function has changed
                    pipe.send((None, None))
                else:
                    call()
                    pipe.send((None, per_call(call, argument)))
        except (EOFError, BrokenPipeError):
            raise
        except NewllmError as error:
            pipe.send((error, None))
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            pipe.send((first or type(error).__name__, None))
