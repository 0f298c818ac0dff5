"""Contestants in processes of their own, which take turns.

Allocator, threads and compiler of one do not touch the others.
"""

import multiprocessing
import signal
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from newllm.bench.harness import per_call, turns
from newllm.errors import NewllmError, RunError

Build = Callable[[], Callable[[], object]]  # makes what is timed; pickled, so a function of a module or a partial

_call: Callable[[], object]  # in a contestant's process: what is timed


def alternate_in_processes(
    contestants: Mapping[str, Build], rounds: int, calls: int, optional: Collection[str] = ()
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds per call, one figure a round and contestant; and why contestants are left out.

    First, each contestant is built and called once, in which compilers work. An `optional` one that fails in this is
    left out; the failure of any other is raised. In each round every contestant makes one untimed call, since the
    caches hold another's data, and `calls` timed ones, in changing order.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would take over threads and allocator settings
    ignore = signal.SIGINT, signal.SIG_IGN  # Ctrl-C is for this process, which ends them
    pools = {name: ProcessPoolExecutor(1, context, signal.signal, ignore) for name in contestants}
    left_out: dict[str, str] = {}
    try:
        built = {name: pools[name].submit(_guarded, _build, build) for name, build in contestants.items()}
        for name, future in built.items():
            try:
                _result(name, future)
            except RunError as error:
                if name not in optional:
                    raise
                left_out[name] = str(error)
        seconds: dict[str, list[float]] = {name: [] for name in contestants if name not in left_out}
        for order in turns(list(seconds), rounds):
            for name in order:
                seconds[name].append(_result(name, pools[name].submit(_guarded, _time, calls)))
        return seconds, left_out
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # also one that still compiles
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)  # waits for the pool's thread, which reaps the process


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
