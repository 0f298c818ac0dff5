"""What SLURM says of jobs: one squeue for all of them, and sacct for those that squeue has forgotten."""

import re
import subprocess
from collections.abc import Iterable
from typing import Literal

from newllm.errors import RunError

LOGS = ".sweep/slurm"  # in the sweep's folder: submitit's files, and what jobs print
GONE = "not known"  # our word for a job that SLURM has forgotten

_TIMEOUT = 60.0  # seconds; squeue itself waits for a controller that does not answer
# SLURM's states by what they mean for a run (squeue(1), JOB STATE CODES); any other one is a job's end.
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_AT_WORK = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
_BROKEN = ("FAILED", "OUT_OF_MEMORY", "BOOT_FAIL", "NODE_FAIL")


def meaning(word: str | None) -> Literal["waiting", "at work", "broken", "ended"] | None:
    """What SLURM's word, such as ``PENDING (Resources)`` or ``CANCELLED by 0``, means for a run."""
    if not word:
        return None
    state = word.split()[0].upper()
    if state in _WAITING:
        return "waiting"
    if state in _AT_WORK:
        return "at work"
    return "broken" if state in _BROKEN else "ended"


def job_states(ids: Iterable[str]) -> dict[str, str]:
    """SLURM's word for each job it knows: ``RUNNING``, ``PENDING (Priority)``, ``FAILED (NonZeroExitCode)``, ….

    An id is ``123`` or, for a task of an array, ``123_4``. An id that is missing in the answer has ended longer ago
    than SLURM remembers, or was cancelled before its array had come to it. Raises RunError if SLURM does not answer.
    """
    wanted = list(dict.fromkeys(ids))
    known = _squeue(wanted) if wanted else {}
    missing = [job for job in wanted if job not in known]
    known |= _sacct(missing) if missing else {}
    return {job: known[job] for job in wanted if job in known}


def ask(*command: str) -> str:
    """The output of a SLURM command; RunError with its own words if it fails or is not there."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except FileNotFoundError:
        raise RunError(f"SLURM cannot be asked: there is no {command[0]} on this machine's PATH") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"SLURM cannot be asked: {command[0]} gave no answer in {_TIMEOUT:.0f} seconds") from None
    if answer.returncode:
        raise RunError(f"SLURM cannot be asked: {words(answer.stderr) or f'{command[0]} failed'}")
    return answer.stdout


def words(stderr: str) -> str:
    """What a SLURM command said, without its name and without repetition, on one line."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip().rstrip(".") for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines)))


def _squeue(jobs: list[str]) -> dict[str, str]:
    arrays = ",".join(dict.fromkeys(job.split("_")[0] for job in jobs))
    try:
        text = ask("squeue", "--noheader", "--all", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={arrays}")
    except RunError as error:
        if "Invalid job id" in str(error):  # SLURM knows none of them any more
            return {}
        raise
    rows = [line.strip().split("|", 2) for line in text.splitlines()]
    return {job: state if reason in ("None", "") else f"{state} ({reason})" for job, state, reason in rows}


def _sacct(jobs: list[str]) -> dict[str, str]:
    """Empty where the cluster keeps no accounts."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    try:
        text = ask("sacct", "--parsable2", "--allocations", "--format=JobID,State", "--jobs", ",".join(jobs))
    except RunError:
        return {}
    states = SlurmInfoWatcher().read_info(text)  # which knows that 12_[0-2%1] are the tasks 12_0 to 12_2
    return {job: found["State"].split(" ")[0] for job, found in states.items()}
