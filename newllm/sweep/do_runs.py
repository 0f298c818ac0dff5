"""The process that does runs: it shows how they get on and forks a worker for each.

newllm.sweep.local starts it and hands it its requests through a pipe; a SLURM job (newllm.sweep.slurm_job) is one too.
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
    """Answer requests, each (name, arguments), with what they return or the NewllmError that they raise.

    Ends when the other side is gone.
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
    """What all workers share."""
    import torch

    import newllm.pack.meeting
    import newllm.run.execute  # noqa: F401

    torch.optim.AdamW([torch.zeros(1)])  # the first optimizer of a process imports for most of a second
    gc.collect()
    gc.freeze()  # workers share these pages as long as no collection touches them


def _launch(sweep: Path, runs: Sequence[Path], policy: Policy, options: Mapping[str, Any]) -> int:
    """What newllm.sweep.local.Local promises of `start`, but that this process survives."""
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
    """Do the frozen runs, in packs if the policy says so; returns the exit status of `Pool.run`.

    Args:
        slots_for: the slots for so many workers.
        kept: run's name -> threads that it had before.
        record: told the `threads` that a run gets.
    """
    workers = Workers()  # which end with the process that is the parent by now, before anything is timed
    slots = slots_for(len(runs))
    packing = pack(sweep, runs, policy.pack, Grant(slots.threads, gpus=slots.gpus[:1]), slots.count, kept)
    slots = slots_for(len(packing.packs))
    record(threads=slots.threads)
    display = Display(sweep, runs)
    pool = Pool(packing.packs, slots, workers, policy, display, kept)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda signum, frame: pool.stop(signum))
    with display.shown(slots.count, packing):
        return pool.run()


def _earlier_threads(sweep: Path) -> dict[str, int]:
    """Run's name -> the threads that its first local launch gave it."""
    found: dict[str, int] = {}
    for record in launches(sweep):
        threads = record.get("threads")
        if record.get("backend") == "local" and isinstance(threads, int):
            found = dict.fromkeys(record.get("runs", ()), threads) | found
    return found
