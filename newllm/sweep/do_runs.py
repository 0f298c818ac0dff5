"""The process that executes runs: it shows their progress and forks a worker for each.

newllm.sweep.local starts it and sends it requests through a pipe; a SLURM job (newllm.sweep.slurm_job) does the same
work.
"""

import gc
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from newllm.errors import NewllmError
from newllm.sweep.check import build_all
from newllm.sweep.display import Display
from newllm.sweep.launches import Policy, launches, recorded
from newllm.sweep.packing import pack
from newllm.sweep.pool import Pool
from newllm.sweep.slots import Grant, Slots, available_cores, visible_gpus
from newllm.sweep.workers import Workers, in_child


def serve(pipe: Connection) -> None:
    """Answer requests (name, arguments) with the return value, or with the NewllmError that was raised.

    Returns when the other end of the pipe is closed.
    """
    import_everything()
    requests: dict[str, Callable[..., Any]] = {"check": partial(in_child, build_all), "launch": _launch}
    with suppress(EOFError, BrokenPipeError):
        while True:
            name, arguments = pipe.recv()
            try:
                answer: Any = requests[name](*arguments)
            except NewllmError as error:
                answer = error
            pipe.send(answer)


def import_everything() -> None:
    """Import what the forked workers share."""
    import torch

    import newllm.pack.meeting
    import newllm.run.execute  # noqa: F401

    torch.optim.AdamW([torch.zeros(1)])  # the first optimizer of a process triggers almost a second of imports
    gc.collect()
    gc.freeze()  # keeps the garbage collector from touching, and so copying, shared pages


def _launch(sweep: Path, runs: Sequence[Path], policy: Policy, options: Mapping[str, Any]) -> int:
    """The part of `Local.start` that happens in this process."""
    kept = {} if options["threads"] != "auto" else _earlier_threads(sweep)
    slots = partial(Slots, available_cores(), visible_gpus(), **options)
    with recorded(sweep, "local", options, policy, runs) as update:
        return do_runs(sweep, runs, policy, slots, kept, update)


def do_runs(
    sweep: Path,
    runs: Sequence[Path],
    policy: Policy,
    slots_for: Callable[[int], Slots],
    kept: Mapping[str, int],
    record: Callable[..., None] = lambda **changes: None,
) -> int:
    """Execute the frozen runs, in packs if the policy says so; returns the exit status of `Pool.run`.

    Args:
        slots_for: makes the slots for a number of workers.
        kept: name of a run -> threads that it used before.
        record: called with the `threads` that a run gets.
    """
    workers = Workers()  # created first, since it remembers the parent process
    slots = slots_for(len(runs))
    packing = pack(sweep, runs, policy.pack, Grant(slots.threads, gpus=slots.gpus[:1]), slots.count, kept)
    slots = slots_for(len(packing.packs))
    record(threads=slots.threads)
    display = Display(sweep, runs)
    pool = Pool(packing.packs, slots, workers, policy, display, kept)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda signum, frame: pool.stop(signum))
    with display.shown(slots.count, packing.size, packing.notes):
        return pool.run()


def _earlier_threads(sweep: Path) -> dict[str, int]:
    """Name of a run -> threads that its first local launch gave it."""
    found: dict[str, int] = {}
    for record in launches(sweep):
        threads = record.get("threads")
        if record.get("backend") == "local" and isinstance(threads, int):
            found = dict.fromkeys(record.get("runs", ()), threads) | found
    return found
