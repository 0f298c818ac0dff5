"""The process that executes runs: it imports everything once, then forks a worker for each run or pack of runs.

newllm.sweep.local starts it and sends it requests through a pipe; a SLURM job (newllm.sweep.slurm_job) starts one too.
"""

import gc
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from newllm.errors import STOPPING, ConfigError, NewllmError, RunError, signal_name
from newllm.runtime import available_cores
from newllm.store.environment import numeric_settings
from newllm.store.run_directory import RunDirectory
from newllm.streams import go_on_without_output, open_outputs
from newllm.sweep.check import build_all
from newllm.sweep.display import Display, plural
from newllm.sweep.launches import Policy, recorded
from newllm.sweep.packing import pack
from newllm.sweep.slots import Grant, Slots, visible_gpus
from newllm.sweep.state import after_worker, before_worker, write_state
from newllm.sweep.workers import Workers, in_child

TICK = 0.2  # seconds between checks for signals and refreshes of the display


def serve(pipe: Connection) -> None:
    """Answer requests (name, arguments) with the return value, or with the NewllmError that was raised.

    Returns when the other end of the pipe is closed.
    """
    open_outputs()
    go_on_without_output()
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
    slots = partial(Slots, available_cores(), visible_gpus(), **options)
    return execute(sweep, runs, policy, slots, recorded(sweep, "local", options, policy, runs))


def execute(
    sweep: Path,
    runs: Sequence[Path],
    policy: Policy,
    slots_for: Callable[[int], Slots],
    launch: AbstractContextManager[object],
) -> int:
    """Execute the frozen runs, in packs if the policy says so; returns the exit status of `Pool.run`.

    slots_for: number of workers -> their slots. launch: context manager to hold while the runs are executed.
    """
    pool: Pool | None = None

    def stop(signum: int, frame: FrameType | None) -> None:
        if pool is None:
            raise _StoppedEarly(128 + signum)
        pool.stop(signum)

    workers = Workers()  # created first, since it remembers the parent process
    for signum in STOPPING:
        if signal.getsignal(signum) != signal.SIG_IGN:  # as SIGUSR2 in a SLURM job, whose first process handles it
            signal.signal(signum, stop)
    try:
        with launch:
            threads = earlier_threads(runs)
            slots = slots_for(len(runs))
            packing = pack(
                sweep, runs, policy.pack, Grant(slots.threads, gpus=slots.gpus[:1] or None), slots.count, threads
            )
            slots = slots_for(len(packing.packs))
            display = Display(sweep, runs)
            pool = Pool(packing.packs, slots, workers, policy, display, threads)
            with display.shown(slots.count, packing.size, packing.notes):
                return pool.run()
    except _StoppedEarly as early:
        return early.code


def earlier_threads(runs: Sequence[Path]) -> dict[str, int]:
    """Name of a run to resume -> threads that it began with. Another number could change the last bits of its loss."""
    threads = {}
    for run in map(RunDirectory, runs):
        with suppress(ConfigError):  # starting the run will report what cannot be read
            if run.last_checkpoint.exists() and (earlier := numeric_settings(run.environment_file)):
                threads[run.path.name] = earlier.threads
    return threads


class _StoppedEarly(SystemExit):
    """A signal arrived before the first run started."""

    code: int


class Pool:
    """Starts packs of runs in order, each as soon as a slot is free; `run()` returns when none is left.

    A pack is the work of one worker: one run, or several that train together. A run that is queued again is a pack of
    its own.
    """

    def __init__(
        self,
        packs: Iterable[Sequence[Path]],
        slots: Slots,
        workers: Workers,
        policy: Policy,
        display: Display,
        threads: Mapping[str, int],
    ) -> None:
        self._queue = deque([RunDirectory(run) for run in pack] for pack in packs)
        self._slots, self._workers, self._policy, self._display = slots, workers, policy, display
        self._threads = threads  # name of a run to resume -> threads that it began with
        self._running: dict[int, tuple[list[RunDirectory], Grant]] = {}  # process id of the worker -> its runs
        self._states: dict[Path, str] = {}  # of runs that are over
        self._attempts: Counter[Path] = Counter()
        self._canary_done = not policy.canary
        self._signals: deque[int] = deque()
        self._stopped_by: int | None = None
        self._halted = False

    def run(self) -> int:
        """Execute the runs; returns 0 if all are done, 128 + n after signal n, else 1."""
        self._handle_signals()
        self._start_runs()
        while self._running:
            for pid, status in self._workers.wait(TICK):
                runs, grant = self._running.pop(pid)
                self._slots.give(grant)
                for run in runs:
                    self._end(run, status)
            self._handle_signals()
            self._start_runs()
            self._display.tick()
        if all(state == "done" for state in self._states.values()) and not self._queue:
            return 0
        return 1 if self._stopped_by is None else 128 + self._stopped_by

    def stop(self, signum: int) -> None:
        """Start no more runs and let the running ones save and stop; a second SIGINT kills them.

        For signal handlers: it only records the signal, which `run` handles.
        """
        self._signals.append(signum)

    def _handle_signals(self) -> None:
        while self._signals:
            signum = self._signals.popleft()
            if self._stopped_by is None:
                self._stopped_by = signum
                will_save = f"no more runs start; {self._running_runs} will save"
                self._halt(f"Stopping ({signal_name(signum)}): {will_save}. Ctrl-C again kills them.")
            elif signum == signal.SIGINT:
                self._display.note("Killed; their last checkpoints stay.")
                self._signal_all(signal.SIGKILL)

    def _start_runs(self) -> None:
        """Start packs from the head of the queue while slots are free."""
        while self._queue and not self._halted and not self._slots.full and (self._canary_done or not self._running):
            runs = self._queue.popleft()
            if not self._canary_done and len(runs) > 1:  # the canary goes alone
                self._queue.appendleft(runs[1:])
                runs = runs[:1]
            runs = [run for run in runs if self._is_queued(run)]
            if not runs:
                continue
            try:
                first = runs[0]  # packed runs need equal resources
                grant = self._slots.take(first.config(), self._threads.get(first.path.name))
            except ConfigError as error:
                write_state(first, "failed", str(error))
                self._close(first, "failed", str(error))
                self._queue.appendleft(runs[1:])
                continue
            if grant is None:
                self._queue.appendleft(runs)
                return
            try:
                pid = self._workers.start([run.path for run in runs], grant.environment())
            except RunError as error:
                self._slots.give(grant)
                self._queue.appendleft(runs)
                self._halt(str(error))
                return
            self._running[pid] = runs, grant
            for run in runs:
                self._attempts[run.path] += 1
                self._display.started(run.path)

    def _is_queued(self, run: RunDirectory) -> bool:
        """Whether a run is still to be started; notes the state of one that is not."""
        state, error = before_worker(run)
        if state != "queued":
            self._close(run, state, error)
        return state == "queued"

    def _end(self, run: RunDirectory, status: int) -> None:
        """The worker of a run has ended: queue the run again if the policy allows, else note its state."""
        state, error = after_worker(run, status, self._halted)
        refused = status == ConfigError.exit_status
        again = state == "failed" and not refused and self._attempts[run.path] <= self._policy.retries
        if self._halted or not again:
            self._close(run, state, error)
            return
        write_state(run, "queued", error)
        self._display.ended(run.path, state, error, again=True)
        if self._canary_done:  # at the end: a run that ran out of memory may succeed beside other runs
            self._queue.append([run])
        else:
            self._queue.appendleft([run])

    def _close(self, run: RunDirectory, state: str, error: str | None) -> None:
        self._states[run.path] = state
        self._display.ended(run.path, state, error, again=False)
        if state == "done":
            self._canary_done = True
        elif state == "failed" and not self._halted:
            if not self._canary_done:
                self._halt("The first run failed, so the others do not start (canary).")
            elif self._policy.fail_fast:
                self._halt(f"A run failed, so no more start; {self._running_runs} will save and stop (fail_fast).")

    def _halt(self, why: str) -> None:
        self._display.note(why)
        self._halted = True
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, signum: int) -> None:
        for pid in self._running:
            self._workers.signal(pid, signum)

    @property
    def _running_runs(self) -> str:
        return plural(sum(len(runs) for runs, _ in self._running.values()), "running run")
