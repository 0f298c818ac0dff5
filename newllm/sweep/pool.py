"""Which run starts when: a queue, the slots, and what is done about runs that fail. Knows no processes."""

import signal
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from newllm.errors import ConfigError, RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.display import Display
from newllm.sweep.outcome import Fate, after_end, before_start, note
from newllm.sweep.policy import Policy
from newllm.sweep.slots import Demand, Grant, Slots, demand
from newllm.sweep.workers import Workers

TICK = 0.2  # seconds between two looks at the clock and at what a signal handler has noted


@dataclass(frozen=True)
class _Job:
    runs: list[RunDirectory]
    grant: Grant


class Pool:
    """Packs of runs are started in their order, each as soon as there is room; `run()` returns when none is left.

    A pack is what one worker does: a run, or several that train together. What goes back to the queue goes alone.
    """

    def __init__(
        self,
        packs: Iterable[Sequence[Path]],
        slots: Slots,
        workers: Workers,
        policy: Policy,
        watcher: Display,
        threads: Mapping[str, int] | None = None,
    ) -> None:
        self.fates: dict[Path, Fate] = {}
        self.stopped_by: int | None = None
        self._queue = deque([RunDirectory(run) for run in pack] for pack in packs)
        self._slots, self._workers, self._policy, self._watcher = slots, workers, policy, watcher
        self._threads = threads or {}  # run's name -> threads that it had before
        self._running: dict[int, _Job] = {}
        self._attempts: Counter[Path] = Counter()
        self._asked: deque[int] = deque()
        self._halted = False
        self._proved = not policy.canary
        self._number = 0

    def run(self) -> int:
        """Do the runs; returns 0 if all are done, 128 + n after signal n, else 1."""
        self._fill()
        while self._running:
            for number, status in self._workers.wait(TICK):
                job = self._running.pop(number)
                self._slots.give(job.grant)
                for run in job.runs:
                    self._end_run(run, status)
            self._fill()
            self._watcher.tick(sum(map(len, self._queue)))
        if all(fate == "done" for fate in self.fates.values()) and not self._queue:
            return 0
        return 1 if self.stopped_by is None else 128 + self.stopped_by

    def stop(self, signum: int) -> None:
        """Start nothing more and let the running ones save and end; a second SIGINT kills them. For signal
        handlers: it only notes the wish."""
        self._asked.append(signum)

    def _obey(self) -> None:
        while self._asked:
            signum = self._asked.popleft()
            if self.stopped_by is None:
                self.stopped_by = signum
                name = signal.Signals(signum).name
                self._halt(f"{name}: no more runs start, {self._at_work} save and end. Ctrl-C kills them at once.")
            elif signum == signal.SIGINT:
                self._watcher.note("Killed; their last checkpoints stay.")
                self._signal_all(signal.SIGKILL)

    def _halt(self, why: str) -> None:
        self._watcher.note(why)
        self._halted = True
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, signum: int) -> None:
        for number in self._running:
            self._workers.signal(number, signum)

    def _fill(self) -> None:
        """Start runs from the head of the queue while there is room."""
        self._obey()
        while self._queue and not self._halted and not self._slots.full and (self._proved or not self._running):
            if not self._proved and len(self._queue[0]) > 1:  # the canary goes alone
                self._queue.appendleft([self._queue[0].pop(0)])
            wants = [want for run in list(self._queue[0]) if (want := self._demand(run))]
            if not wants:
                self._queue.popleft()
                continue
            grant = self._slots.take(wants[0])  # packed runs have one demand
            if grant is None:
                return
            self._start(self._queue.popleft(), grant)

    def _demand(self, run: RunDirectory) -> Demand | None:
        """What the run, of the pack at the head of the queue, asks for; None if it is not to be started any more."""
        fate, error = before_start(run)
        if fate == "queued":
            try:
                want = demand(run.config(), bool(self._slots.gpus))
            except ConfigError as refusal:
                fate, error = "failed", str(refusal)
                note(run, fate, error)
        if fate != "queued":
            self._queue[0].remove(run)
            self._close(run, fate, error)
            return None
        return want if want.threads else replace(want, threads=self._threads.get(run.path.name))

    def _start(self, runs: list[RunDirectory], grant: Grant) -> None:
        self._number += 1
        try:
            self._workers.start(self._number, [run.path for run in runs], grant.environment())
        except RunError as error:
            self._slots.give(grant)
            self._queue.appendleft(runs)
            self._halt(str(error))
            return
        self._running[self._number] = _Job(runs, grant)
        for run in runs:
            self._attempts[run.path] += 1
            self._watcher.started(run.path)

    def _end_run(self, run: RunDirectory, status: int) -> None:
        fate, error = after_end(run, status, self._halted)
        refused = status == ConfigError.exit_status
        again = fate == "failed" and not refused and self._attempts[run.path] <= self._policy.retries
        if self._halted or not again:
            self._close(run, fate, error)
            return
        note(run, "queued", error)
        self._watcher.ended(run.path, fate, error, again=True)
        if not self._proved:
            self._queue.appendleft([run])
        else:  # what failed for want of memory may fare better among other neighbours
            self._queue.append([run])

    @property
    def _at_work(self) -> int:
        return sum(len(job.runs) for job in self._running.values())

    def _close(self, run: RunDirectory, fate: Fate, error: str | None) -> None:
        self.fates[run.path] = fate
        self._watcher.ended(run.path, fate, error, again=False)
        if fate == "done":
            self._proved = True
        elif fate == "failed" and not self._halted:
            if not self._proved:
                self._halt("The first run has failed, so that the others do not start (canary).")
            elif self._policy.fail_fast:
                self._halt(f"A run has failed: no more start, {self._at_work} save and end (fail_fast).")
