"""What SLURM says of jobs: one squeue for all of them, and sacct for those that squeue has forgotten."""

import re
import subprocess
from collections.abc import Iterable

from newllm.errors import RunError

_SECONDS = 60.0  # longer than squeue waits for a controller that does not answer


def job_states(ids: Iterable[str]) -> dict[str, str]:
    """SLURM's word for each job it knows: ``RUNNING``, ``PENDING (Priority)``, ``FAILED (NonZeroExitCode)``, ….

    An id is ``123`` or, of an array's task, ``123_4``. One that is missing in the answer has ended longer ago than
    SLURM remembers, or was cancelled before its array had come to it.

    Raises:
        RunError: SLURM is not there or does not answer.
    """
    wanted = list(dict.fromkeys(ids))
    if not wanted:
        return {}
    known = _squeue(wanted)
    missing = [job for job in wanted if job not in known]
    found = known | (_sacct(missing) if missing else {})
    return {job: found[job] for job in wanted if job in found}


def ask(*command: str) -> str:
    """The output of a SLURM command; RunError with its own words if it fails or is not there."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise RunError(f"SLURM cannot be asked: there is no {command[0]} on this machine's PATH") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"SLURM cannot be asked: {command[0]} gave no answer in {_SECONDS:.0f} seconds") from None
    if answer.returncode:
        raise RunError(f"SLURM cannot be asked: {words(answer.stderr) or f'{command[0]} failed'}")
    return answer.stdout


def words(stderr: str) -> str:
    """What a SLURM command said, without its name and without repetition, on one line."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip().rstrip(".") for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines)))


def _squeue(jobs: list[str]) -> dict[str, str]:
    whole = ",".join(dict.fromkeys(job.split("_")[0] for job in jobs))
    try:
        text = ask("squeue", "--noheader", "--all", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={whole}")
    except RunError as error:
        if "Invalid job id" in str(error):  # none of them is known any more
            return {}
        raise
    found = {}
    for line in text.splitlines():
        job, state, reason = line.strip().split("|", 2)
        found[job] = state if reason in ("None", "") else f"{state} ({reason})"
    return found


def _sacct(jobs: list[str]) -> dict[str, str]:
    """Empty where the cluster keeps no accounts."""
    try:
        text = ask(
            "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", "--jobs", ",".join(jobs)
        )
    except RunError:
        return {}
    found = {}
    for line in text.splitlines():
        job, state = line.strip().split("|", 1)
        found.update(dict.fromkeys(_tasks(job), state.split(" ")[0]))
    return found


def _tasks(job: str) -> list[str]:
    """``12_[0-2,5%3]``, the tasks of an array that have not started, one by one; another id as it is."""
    found = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if found is None:
        return [job]
    array, ranges = found.groups()
    bounds = [part.split("-") for part in ranges.split(",")]
    return [
        f"{array}_{task}" for first, *last in bounds for task in range(int(first), int(last[0] if last else first) + 1)
    ]
