"""The work of a SLURM job: it gives its runs to a local pool and is requeued when its time is up.

The pool runs in a separate process, so that the process with submitit's signal handler can always react.
"""

import getpass
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from newllm.errors import ConfigError, RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_LOCK_PATIENCE = 30.0  # seconds; file systems that nodes share may be slow


@dataclass
class Task:
    """The callable that submitit executes in the job.

    Args:
        sweep: folder of the sweep.
        name: job name, shared by the jobs of one launch.
        runs: run directories of the job.
        policy: how failures are handled, without a canary.
        jobs_per_gpu: runs that share a GPU.
        requeues: how often the job may still be requeued.
    """

    sweep: str
    name: str
    runs: list[str]
    policy: Policy
    jobs_per_gpu: int
    requeues: int

    def __call__(self) -> None:
        """Execute the queued runs. Raises RunError if one fails, so that SLURM reports FAILED too."""
        from submitit import JobEnvironment

        directories = [RunDirectory(run) for run in self.runs]
        for run in directories:  # the launcher does so too, unless it was killed after sbatch
            with suppress(ConfigError), run.locked(_LOCK_PATIENCE):
                run.update_status(slurm=JobEnvironment().job_id)
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)):
            _queue_again(directories)
        # If SLURM allots no GPU, the job must not use one.
        environment = {"CUDA_VISIBLE_DEVICES": "", **os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "newllm.sweep.slurm_job", json.dumps(asdict(self))]
        # SLURM sends SIGUSR2 to all processes of a job, but only the first one must handle it. Children inherit ignored
        # signals.
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
        """Called by submitit when the time limit is near or the job is preempted: the runs save and stop.

        Returns the task for the requeued job, or None if the job may not be requeued again.
        """
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM may send it repeatedly
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
                directory.end_attempt("interrupted", "Its job was requeued as often as max_requeues allows.")
        return None

    def _wait(self) -> int:
        """Wait for the pool to end; returns its exit status. Reentrant: the signal handler calls it too."""
        ended = os.waitid(os.P_PID, self._pool.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _queue_again(directories: Iterable[RunDirectory]) -> None:
    """Queue the runs that were stopped with the job or cut off with its machine."""
    for directory in directories:
        if directory.observed() == "interrupted" and not directory.status().get("error"):
            directory.update_status(state="queued")


def main(argv: list[str]) -> int:
    """Run the pool of a job; returns the exit status. The only argument is its `Task` as JSON."""
    from newllm.runtime import available_cores
    from newllm.sweep.pool import execute, import_everything
    from newllm.sweep.slots import Slots, visible_gpus

    import_everything()
    task = json.loads(argv[0])
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or available_cores())
    slots = partial(Slots, cores, visible_gpus(), jobs_per_gpu=task["jobs_per_gpu"])
    runs = [Path(run) for run in task["runs"]]
    return execute(Path(task["sweep"]), runs, Policy(**task["policy"]), slots, launch=nullcontext())


if __name__ == "__main__":
    from newllm.errors import run_command

    raise SystemExit(run_command(main, sys.argv[1:]))
