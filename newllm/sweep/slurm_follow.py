"""Following the runs of SLURM jobs to their end, and putting down SLURM's word for those that left none."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from newllm.errors import RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.display import Display
from newllm.sweep.slurm_state import job_states
from newllm.sweep.slurm_task import FOLDER
from newllm.sweep.state import meaning

Ask = Callable[[Iterable[str]], Mapping[str, str]]

TICK = 1.0  # seconds
_ASK_TICKS = 5  # between two questions to SLURM
_OWN_TURN = ("Priority", "Resources", "JobArrayTaskLimit", "Dependency", "BeginTime")  # reasons that need no mention


def follow(runs: Sequence[Path], watcher: Display, ask: Ask = job_states, seconds: float = TICK) -> bool:
    """Wait until the jobs of all `runs` have ended, and tell the watcher what happens; True if all runs are done.

    Files are read of runs whose jobs are at work, so that many that wait cost nothing.
    """
    left = {run: RunDirectory(run) for run in runs}
    job_of = {run: str(directory.status().get("slurm")) for run, directory in left.items()}
    running: set[Path] = set()
    at_work: set[Path] = set()
    jobs = _Jobs(watcher, ask)
    all_done = True
    ticks = 0
    while left:
        over: set[Path] = set()
        if ticks % _ASK_TICKS == 0:
            jobs.look(job_of[run] for run in left)
            over = {run for run in left if job_of[run] in jobs.ended}
            at_work = {run for run in left if job_of[run] not in jobs.waiting} | running
            for run in over:
                settle(left[run], jobs.ended[job_of[run]])
        for run in [run for run in runs if run in at_work]:
            status = left[run].status()
            state = status.get("state", "queued")
            if state == "done" or run in over:
                del left[run]
                at_work.discard(run)
                running.discard(run)
                all_done = all_done and state == "done"
                watcher.ended(run, state, status.get("error"), again=False)
            elif state == "running" and run not in running:
                running.add(run)
                watcher.started(run)
            elif state == "queued" and run in running:  # with its job, which will start again
                running.discard(run)
                watcher.ended(run, "interrupted", None, again=True)
        watcher.tick(len(left) - len(running))
        ticks += 1
        if left:
            time.sleep(seconds)
    return all_done


def settle(run: RunDirectory, word: str | None) -> None:
    """The job of `run` has ended, as SLURM says with `word`: a run that has not said itself how it ended gets a state
    and SLURM's word in its status.json. None: SLURM knows the job no longer."""
    status = run.status()
    state = status.get("state")
    if state in ("done", "failed") or (state == "interrupted" and status.get("error")) or run.in_use():
        return
    how = word or "not known any more, as after scancel"
    began = "" if state in ("running", "interrupted") else " before the run began"
    failed = state != "interrupted" and meaning(word) == "broken"
    log = run.path.parent / FOLDER / f"{status.get('slurm')}_0_log.err"
    more = f"; {log} says more" if failed and log.exists() else ""
    run.end_attempt(
        "failed" if failed else "interrupted", f"SLURM ended job {status.get('slurm')}{began}: {how}{more}."
    )


class _Jobs:
    """What SLURM says of jobs.

    ended: job -> SLURM's word, of those that have ended; None if SLURM does not know the
    job, twice running. waiting: jobs in the queue.
    """

    def __init__(self, watcher: Display, ask: Ask) -> None:
        self.ended: dict[str, str | None] = {}
        self.waiting: set[str] = set()
        self._watcher, self._ask = watcher, ask
        self._unknown: set[str] = set()
        self._told: set[str] = set()

    def look(self, jobs: Iterable[str]) -> None:
        """Ask SLURM about these."""
        jobs = set(jobs)
        self.ended = {}
        try:
            words = self._ask(jobs)
        except RunError as error:
            self._watcher.note(f"{error}; trying again.")
            return
        before, self._unknown = self._unknown, jobs - set(words)
        self.ended = {job: word for job, word in words.items() if meaning(word) in ("broken", "ended")}
        self.ended |= dict.fromkeys(before & self._unknown)
        self.waiting = {job for job, word in words.items() if meaning(word) == "waiting"}
        self._tell_why(Counter(words[job] for job in self.waiting))

    def _tell_why(self, waiting: Mapping[str, int]) -> None:
        """Once of each reason for waiting that may want the user's attention."""
        for word, number in waiting.items():
            if "(" in word and word not in self._told and not any(reason in word for reason in _OWN_TURN):
                self._told.add(word)
                self._watcher.note(f"{number:,} job{'s' * (number != 1)} {word}: squeue(1) explains the reason.")
