"""Decides which run starts when and what happens to runs that fail. The processes are those of `Workers`."""

import signal
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from newllm.errors import ConfigError, RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.display import Display
from newllm.sweep.launches import Policy
from newllm.sweep.slots import Demand, Grant, Slots, demand
from newllm.sweep.state import after_worker, before_worker, write_state
from newllm.sweep.workers import Workers

TICK = 0.2  # seconds between checks for signals and refreshes of the display


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
        threads: Mapping[str, int] | None = None,
    ) -> None:
        self._states: dict[Path, str] = {}  # of finished runs
        self._stopped_by: int | None = None
        self._queue = deque([RunDirectory(run) for run in pack] for pack in packs)
        self._slots, self._workers, self._policy, self._display = slots, workers, policy, display
        self._threads = threads or {}  # name of a run -> threads that it used before
        self._running: dict[int, tuple[list[RunDirectory], Grant]] = {}  # by the worker's number
        self._attempts: Counter[Path] = Counter()
        self._signals: deque[int] = deque()
        self._halted = False
        self._canary_done = not policy.canary
        self._number = 0

    def run(self) -> int:
        """Execute the runs; returns 0 if all are done, 128 + n after signal n, else 1."""
        self._fill()
        while self._running:
            for number, status in self._workers.wait(TICK):
                runs, grant = self._running.pop(number)
                self._slots.give(grant)
                for run in runs:
                    self._end(run, status)
            self._fill()
            self._display.tick()
        if all(state == "done" for state in self._states.values()) and not self._queue:
            return 0
        return 1 if self._stopped_by is None else 128 + self._stopped_by

    def stop(self, signum: int) -> None:
        """Start no more runs and let the running ones save and end; a second SIGINT kills them.

        For signal handlers: it only records the signal, which `run` handles.
        """
        self._signals.append(signum)

    def _fill(self) -> None:
        """Handle signals; then start runs from the head of the queue while slots are free."""
        while self._signals:
            signum = self._signals.popleft()
            if self._stopped_by is None:
                self._stopped_by = signum
                name = signal.Signals(signum).name
                self._halt(f"{name}: no more runs start, {self._running_count} save and end. Ctrl-C kills them.")
            elif signum == signal.SIGINT:
                self._display.note("Killed; their last checkpoints stay.")
                self._signal_all(signal.SIGKILL)
        while self._queue and not self._halted and not self._slots.full and (self._canary_done or not self._running):
            if not self._canary_done and len(self._queue[0]) > 1:  # the canary goes alone
                self._queue.appendleft([self._queue[0].pop(0)])
            demands = [want for run in list(self._queue[0]) if (want := self._demand(run))]
            if not demands:
                self._queue.popleft()
                continue
            grant = self._slots.take(demands[0])  # packed runs have one demand
            if grant is None:
                return
            self._start(self._queue.popleft(), grant)

    def _demand(self, run: RunDirectory) -> Demand | None:
        """The demand of a run at the head of the queue; None if it need not start, and then it leaves its pack."""
        state, error = before_worker(run)
        if state == "queued":
            try:
                want = demand(run.config(), bool(self._slots.gpus))
                return want if want.threads else replace(want, threads=self._threads.get(run.path.name))
            except ConfigError as refusal:
                state, error = "failed", str(refusal)
                write_state(run, "failed", error)
        self._queue[0].remove(run)
        self._close(run, state, error)
        return None

    def _start(self, runs: list[RunDirectory], grant: Grant) -> None:
        self._number += 1
        try:
            self._workers.start(self._number, [run.path for run in runs], grant.environment())
        except RunError as error:
            self._slots.give(grant)
            self._queue.appendleft(runs)
            self._halt(str(error))
            return
        self._running[self._number] = runs, grant
        for run in runs:
            self._attempts[run.path] += 1
            self._display.started(run.path)

    def _end(self, run: RunDirectory, status: int) -> None:
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
                self._halt(f"A run failed: no more runs start, {self._running_count} save and end (fail_fast).")

    def _halt(self, why: str) -> None:
        self._display.note(why)
        self._halted = True
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, signum: int) -> None:
        for number in self._running:
            self._workers.signal(number, signum)

    @property
    def _running_count(self) -> int:
        return sum(len(runs) for runs, _ in self._running.values())
