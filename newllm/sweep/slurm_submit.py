"""One call of sbatch through submitit: a list of tasks becomes one job array, a single task a job."""

import io
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError, RunError
from newllm.sweep.slurm_state import ask, words
from newllm.sweep.slurm_task import FOLDER, Task
from newllm.sweep.snapshot import environment

# SIGUSR2 is the signal on which a job goes back to the queue: it must not end Python while that is still starting.
_PYTHON = """sh -c 'trap "" USR2; exec "$0" -P "$@"' {}"""


def submit(
    tasks: Sequence[Task], sweep: Path, code: Path, setup: Sequence[str], options: Mapping[str, Any]
) -> list[str]:
    """Submit; returns the job id of each task.

    Args:
        sweep: the sweep's folder, which gets submitit's files.
        code: the snapshot of the code that the jobs run.
        setup: shell lines before it.
        options: of sbatch, under submitit's names; None is left out.

    Raises:
        ConfigError: sbatch refused, in its words.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    python = _PYTHON.format(shlex.quote(sys.executable))
    executor = SlurmExecutor(sweep.resolve() / FOLDER, max_num_timeout=sys.maxsize, python=python)
    given = {key: value for key, value in options.items() if value is not None}
    given |= {
        "nodes": 1,
        "ntasks_per_node": 1,
        "wckey": None,  # submitit's name for itself, which a cluster that keeps such accounts would not know
        "setup": [*setup, f"export PYTHONPATH={shlex.quote(environment(code)['PYTHONPATH'])}"],
        "srun_args": [f"--cpus-per-task={options['cpus_per_task']}"],  # srun does not take it over from sbatch
        # Requeuing is off on some clusters unless asked for; a job after one that failed would else wait for ever.
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **options["additional_parameters"]},
    }
    executor.update_parameters(**given)
    try:
        with _clean_environment(), redirect_stderr(io.StringIO()):  # submitit shows there what it raises as well
            return [str(job.job_id) for job in executor.submit_array(tasks)]
    except (FailedJobError, FailedSubmissionError) as error:
        raise ConfigError(
            f"sbatch refused the jobs: {words(str(error))}; the runs stay queued, so change the options of "
            "hydra.launcher and type the command again."
        ) from None


def largest_array() -> int:
    """MaxArraySize of the cluster: so many tasks fit into one array. ConfigError if SLURM does not answer."""
    try:
        lines = ask("scontrol", "show", "config").splitlines()
    except RunError as error:
        raise ConfigError(f"{error}; the runs stay queued, so type the command again when it answers.") from None
    return next(int(line.partition("=")[2]) for line in lines if line.startswith("MaxArraySize"))


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Without what a job around us has set, which sbatch would take for wishes; but with the way to SLURM."""
    from submitit.helpers import clean_env

    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield
