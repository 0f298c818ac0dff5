"""Contestants in processes of their own, which take turns.

Allocator, threads and compiler of one do not touch the others.
"""

import multiprocessing
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from newllm.bench.harness import per_call, turns
from newllm.errors import NewllmError, RunError

Build = Callable[[], Callable[[], object]]  # makes what is timed; pickled, so a function of a module or a partial

_call: Callable[[], object]  # in a contestant's process: what is timed


class Contestants:
    """pools: a process for each contestant. left_out: why the others are missing."""

    def __init__(self, pools: dict[str, ProcessPoolExecutor]) -> None:
        self.pools = pools
        self.left_out: dict[str, str] = {}

    def alternate(self, rounds: int, calls: int) -> dict[str, list[float]]:
        """Seconds per call, one figure a round and contestant.

        In each round every contestant makes one untimed call, since the caches hold another's data, and `calls` timed
        ones, in changing order.
        """
        seconds: dict[str, list[float]] = {name: [] for name in self.pools}
        for order in turns(list(self.pools), rounds):
            for name in order:
                seconds[name].append(_result(name, self.pools[name].submit(_guarded, _time, calls)))
        return seconds

    def do(self, function: Callable[[], object]) -> None:
        """Call a function of a module in each process, and its contestant once, untimed."""
        for name, pool in self.pools.items():
            _result(name, pool.submit(_guarded, _change, function))


@contextmanager
def in_processes(contestants: Mapping[str, Build], optional: Collection[str] = ()) -> Iterator[Contestants]:
    """Builds the contestants and calls each once, in which compilers work.

    An `optional` contestant that fails in this is left out; the failure of any other is raised.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would take over threads and allocator settings
    ignore = signal.SIGINT, signal.SIG_IGN  # Ctrl-C is for this process, which ends them
    found = Contestants({name: ProcessPoolExecutor(1, context, signal.signal, ignore) for name in contestants})
    try:
        built = {name: found.pools[name].submit(_guarded, _build, build) for name, build in contestants.items()}
        for name, future in built.items():
            try:
                _result(name, future)
            except RunError as error:
                if name not in optional:
                    raise
                found.left_out[name] = str(error)
                found.pools.pop(name).shutdown(wait=False)
        yield found
    finally:
        for pool in found.pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # also one that still compiles


def _result(name: str, future: "Future[Any]") -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RunError(
            f"the process of {name} was killed, as the system does when memory runs out: try a smaller batch_size"
        ) from None
    except RunError as error:
        raise RunError(f"{name} failed: {error}") from None


def _guarded(function: Callable[[Any], Any], argument: object) -> Any:
    """In a contestant's process. Any error becomes one that can be sent: some of torch's cannot be pickled."""
    try:
        return function(argument)
    except NewllmError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise RunError(first or type(error).__name__) from None


def _build(build: Build) -> None:
    global _call
    _call = build()
    _call()


def _time(calls: int) -> float:
    _call()
    return per_call(_call, calls)


def _change(function: Callable[[], object]) -> None:
    function()
    _call()
