"""What a SLURM job does: it hands its runs to a local pool, and goes back to the queue when its time is up.

The pool works in a process of its own, so that the process with submitit's signal handler is always free to act.
"""

import getpass
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from newllm.errors import RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_CLAIM_SECONDS = 30.0  # for the launcher to note which job it has been given for a run


@dataclass
class Task:
    """Called by submitit in the job.

    Args:
        sweep: the sweep's folder.
        name: the jobs' name, which the jobs of one launch share.
        runs: the directories of the job's runs.
        policy: what is done about failures; `canary` is the launcher's business.
        jobs_per_gpu: runs that share a GPU.
        requeues: how many more times the job may go back to the queue.
    """

    sweep: str
    name: str
    runs: tuple[str, ...]
    policy: Policy
    jobs_per_gpu: int
    requeues: int

    def __call__(self) -> None:
        """Do the runs that are queued. Raises RunError if one has failed, so that SLURM says FAILED too."""
        directories = [RunDirectory(run) for run in self.runs]
        _claim(directories, job_id(os.environ))
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)):
            _queue_again(directories)
        # Where SLURM allots no GPU there is none for us, whatever the machine has.
        environment = {"CUDA_VISIBLE_DEVICES": "", **os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "newllm.sweep.slurm_job", json.dumps(asdict(self))]
        # SLURM sends SIGUSR2 to all processes of a job, and only its first one is to act on it. Children ignore what
        # their parent ignores, until they install a handler.
        self._pool = subprocess.Popen(
            command, env=environment, preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        )
        status = self._wait()
        failed = [directory.path.name for directory in directories if directory.status().get("state") == "failed"]
        if failed:
            if self.policy.fail_fast:
                user = getpass.getuser()
                subprocess.run(["scancel", "--state=PENDING", f"--jobname={self.name}", f"--user={user}"], check=False)
            raise RunError(f"{len(failed)} of {len(self.runs)} runs failed: {', '.join(failed)}")
        if status:  # stopped, as by scancel
            sys.exit(status if status > 0 else 128 - status)

    def checkpoint(self) -> "DelayedSubmission | None":
        """Called by submitit when the time limit is near or the job is preempted: the runs save and end.

        Returns what is to be done when the job starts again; None if it may not go back to the queue any more.
        """
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # schedulers repeat it
        from submitit.helpers import DelayedSubmission

        if hasattr(self, "_pool"):
            os.kill(self._pool.pid, signal.SIGTERM)
            self._wait()
        directories = [RunDirectory(run) for run in self.runs]
        if self.requeues > 0:
            _queue_again(directories)
            return DelayedSubmission(replace(self, requeues=self.requeues - 1))
        for directory in directories:
            if directory.observed() in ("queued", "interrupted"):
                directory.end_attempt(
                    "interrupted", "Its job has gone back to the queue as often as max_requeues allows."
                )
        return None

    def _wait(self) -> int:
        """Until the pool has ended; its exit status. The signal handler can enter it while it is under way."""
        ended = os.waitid(os.P_PID, self._pool.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def job_id(environment: Mapping[str, str]) -> str:
    """The id of the job that this is, as squeue shows it: ``123``, or ``123_4`` for an array's task."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]


def _claim(directories: Iterable[RunDirectory], job: str) -> None:
    """See to it that each run names this job. The launcher writes that down, unless it was killed after sbatch."""
    deadline = time.monotonic() + _CLAIM_SECONDS
    for directory in directories:
        while directory.status().get("slurm") != job:
            if time.monotonic() > deadline:
                directory.update_status(slurm=job)
            time.sleep(0.1)


def _queue_again(directories: Iterable[RunDirectory]) -> None:
    """Runs that were stopped with the job, or cut off with its machine, wait for it to start again."""
    for directory in directories:
        if directory.observed() == "interrupted" and not directory.status().get("error"):
            directory.update_status(state="queued")


def main(argv: list[str]) -> int:
    """The pool of a job, whose `Task` is the only argument, as JSON; returns the exit status."""
    from newllm.sweep.do_runs import do_runs, import_everything
    from newllm.sweep.slots import Slots, available_cores, visible_gpus

    import_everything()
    job = json.loads(argv[0])
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or available_cores())
    slots = partial(Slots, cores, visible_gpus(), jobs_per_gpu=job["jobs_per_gpu"])
    policy = replace(Policy(**job["policy"]), canary=False)
    return do_runs(Path(job["sweep"]), [Path(run) for run in job["runs"]], policy, slots, {})


if __name__ == "__main__":
    from newllm.errors import run_command

    raise SystemExit(run_command(main, sys.argv[1:]))
