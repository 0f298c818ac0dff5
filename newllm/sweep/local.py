"""The local launcher: runs side by side on this machine's GPUs or CPU cores, a process each."""

import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from newllm.errors import ConfigError
from newllm.sweep.check import parts
from newllm.sweep.display import Display
from newllm.sweep.packing import pack
from newllm.sweep.policy import Policy
from newllm.sweep.pool import Pool
from newllm.sweep.record import begin, launches
from newllm.sweep.slots import Grant, Slots, available_cores, visible_gpus
from newllm.sweep.snapshot import environment, snapshot
from newllm.sweep.workers import NurseryWorkers


class Local:
    """A pool of slots on this machine; a slot is a GPU, or a share of one, or a group of CPU cores.

    CUDA_VISIBLE_DEVICES is respected: its GPUs are handed out, and no others. A run with runtime.threads=N or
    trainer.devices=N takes as much as that. A run that goes on keeps the thread count that it began with, since
    another one could change the last bits of its numbers.

    Args:
        slots: runs at once; "auto": `jobs_per_gpu` on each GPU, or as many as the cores have room for.
        threads: CPU threads of a run; "auto": 1 if there are at least as many runs as cores, else the cores shared out.
        jobs_per_gpu: runs that share a GPU.
    """

    def __init__(
        self,
        slots: int | Literal["auto"] = "auto",
        threads: int | Literal["auto"] = "auto",
        jobs_per_gpu: int = 1,
    ) -> None:
        self.slots, self.threads, self.jobs_per_gpu = slots, threads, jobs_per_gpu
        self._prepared: NurseryWorkers | None = None
        self._slots_for(1, gpus=())  # refuses numbers that make no sense

    def check(self, sweep: Path, configs: Iterable[Mapping[str, Any]]) -> None:
        """ConfigError if a part of these effective configurations cannot be built.

        This is done by the process that will start the runs of `sweep`, since it imports torch anyway.
        """
        self._prepare(sweep)
        assert self._prepared is not None
        if refused := self._prepared.check(parts(configs)):
            raise ConfigError(refused)

    def _prepare(self, sweep: Path) -> None:
        folder = sweep / ".sweep"
        folder.mkdir(parents=True, exist_ok=True)
        self._prepared = NurseryWorkers(environment(snapshot(sweep)), folder / "nursery.log")

    def start(self, sweep: Path, runs: Sequence[Path], policy: Policy) -> int:
        """Do the frozen `runs` of the folder `sweep`, and wait for them; returns the exit status.

        0: all done. 1: some run failed, or has been cancelled, or is in the hands of another process. 128 + n: stopped
        by signal n; what has not run stays queued.
        """
        if not runs:
            return 0
        if self._prepared is None:
            self._prepare(sweep)
        assert self._prepared is not None
        workers, self._prepared = self._prepared, None
        with workers:
            display = Display(sweep, runs)
            workers.say = display.note
            gpus = visible_gpus()
            slots = self._slots_for(len(runs), gpus)
            kept = {} if self.threads != "auto" else _earlier_threads(sweep)
            options = {"slots": self.slots, "threads": self.threads, "jobs_per_gpu": self.jobs_per_gpu}
            with begin(sweep, "local", options, policy, runs) as record:
                sample = Grant(slots.threads, gpus=gpus[:1])
                packing = pack(sweep, runs, policy.pack, workers, sample, slots.count, kept)
                slots = self._slots_for(len(packing.packs), gpus)
                record.update(threads=slots.threads)
                pool = Pool(packing.packs, slots, workers, policy, display, kept)
                with _stopping(pool), display.shown(slots.count, packing):
                    return pool.run()

    def _slots_for(self, runs: int, gpus: tuple[str, ...]) -> Slots:
        return Slots(available_cores(), gpus, runs, self.slots, self.threads, self.jobs_per_gpu)


def _earlier_threads(sweep: Path) -> dict[str, int]:
    """Run's name -> the threads that its first local launch gave it."""
    found: dict[str, int] = {}
    for record in launches(sweep):
        threads = record.get("threads")
        if record.get("backend") == "local" and isinstance(threads, int):
            found = dict.fromkeys(record.get("runs", ()), threads) | found
    return found


@contextmanager
def _stopping(pool: Pool) -> Iterator[None]:
    """Hand Ctrl-C, SIGTERM and the terminal's end to the pool within this block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        pool.stop(signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
