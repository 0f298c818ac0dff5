"""States of SLURM jobs: one squeue for all of them, then sacct for jobs that squeue no longer lists."""

import re
import subprocess
from collections.abc import Iterable
from typing import Literal

from newllm.errors import RunError

LOGS = ".sweep/slurm"  # in the folder of the sweep: submitit's files and the output of jobs
GONE = "not known"  # our state of a job that SLURM has forgotten

_TIMEOUT = 60.0  # seconds; squeue itself waits for a controller that does not answer
# SLURM's states by what they mean for a run (squeue(1), JOB STATE CODES); in all other states the job has ended.
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_AT_WORK = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
_BROKEN = ("FAILED", "OUT_OF_MEMORY", "BOOT_FAIL", "NODE_FAIL")


def meaning(job_state: str | None) -> Literal["waiting", "at work", "broken", "ended"] | None:
    """What a job state, such as ``PENDING (Resources)`` or ``CANCELLED by 0``, means for a run."""
    if not job_state:
        return None
    state = job_state.split()[0].upper()
    if state in _WAITING:
        return "waiting"
    if state in _AT_WORK:
        return "at work"
    return "broken" if state in _BROKEN else "ended"


def job_states(ids: Iterable[str]) -> dict[str, str]:
    """The state of each job that SLURM knows: ``RUNNING``, ``PENDING (Priority)``, ``FAILED (NonZeroExitCode)``, ….

    An id is ``123`` or, for a task of an array, ``123_4``. A missing id has ended longer ago than SLURM
    remembers, or was cancelled before its array reached it. Raises RunError if SLURM does not answer.
    """
    wanted = list(dict.fromkeys(ids))
    known = _squeue(wanted) if wanted else {}
    missing = [job for job in wanted if job not in known]
    known |= _sacct(missing) if missing else {}
    return {job: known[job] for job in wanted if job in known}


def ask(*command: str) -> str:
    """The output of a SLURM command. Raises RunError with its message if it fails or is not installed."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except FileNotFoundError:
        raise RunError(f"SLURM's {command[0]} is not on this machine's PATH") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"SLURM's {command[0]} gave no answer in {_TIMEOUT:.0f} seconds") from None
    if answer.returncode:
        raise RunError(f"SLURM's {command[0]} failed: {error_text(answer.stderr) or f'status {answer.returncode}'}")
    return answer.stdout


def error_text(stderr: str) -> str:
    """The error message of a SLURM command on one line, without its name and repeated lines."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip().rstrip(".") for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines)))


def _squeue(jobs: list[str]) -> dict[str, str]:
    arrays = ",".join(dict.fromkeys(job.split("_")[0] for job in jobs))
    try:
        text = ask("squeue", "--noheader", "--all", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={arrays}")
    except RunError as error:
        if "Invalid job id" in str(error):  # SLURM no longer knows any of them
            return {}
        raise
    rows = [line.strip().split("|", 2) for line in text.splitlines()]
    return {job: state if reason in ("None", "") else f"{state} ({reason})" for job, state, reason in rows}


def _sacct(jobs: list[str]) -> dict[str, str]:
    """Like `_squeue`, from the accounting database; empty if the cluster has none."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    try:
        text = ask("sacct", "--parsable2", "--allocations", "--format=JobID,State", "--jobs", ",".join(jobs))
    except RunError:
        return {}
    states = SlurmInfoWatcher().read_info(text)  # expands 12_[0-2%1] to the tasks 12_0 to 12_2
    return {job: found["State"].split(" ")[0] for job, found in states.items()}
