"""The runs of a sweep as they really are, read from their directories alone: no launcher has to be alive for it."""

import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from newllm.errors import ConfigError, RunError
from newllm.store.run_directory import RunDirectory, State
from newllm.sweep.record import launches
from newllm.sweep.runs import runs_in

# In the order in which they are shown; `unreadable` is a run whose status.json or results.json is broken.
STATES = ("running", "failed", "unreadable", "interrupted", "queued", "done")

# SLURM's states by what they mean for a run (squeue(1), JOB STATE CODES); any other one is a job's end.
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_AT_WORK = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
_BROKEN = ("FAILED", "OUT_OF_MEMORY", "BOOT_FAIL", "NODE_FAIL")
GONE = "not known"  # our word for a job that SLURM has forgotten

Ask = Callable[[list[str]], Mapping[str, str] | None]


@dataclass(frozen=True)
class Line:
    """One run as observed; what is not known is None.

    Args:
        state: one of STATES.
        attended: a process, a launcher that lives, or SLURM has it in hand; False of a queued run: it waits for nobody.
        attempt, step, steps, epoch, loss, tokens_per_second: where the latest attempt is.
        phase: name of the first phase that it is in, whose iterations are its steps then.
        val_ppl: perplexity of a finished run.
        seconds: how long the latest attempt has taken.
        seconds_left: of a running one, at its latest speed, without the evaluation.
        slurm, slurm_state: id of the job, and SLURM's word for it.
        error: one sentence.
        evaluated_from: the run's name, where the line is of an evaluation of it under other settings.
    """

    name: str
    path: str
    state: str
    attended: bool = False
    attempt: int = 0
    phase: str | None = None
    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    loss: float | None = None
    val_ppl: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    host: str | None = None
    pid: int | None = None
    slurm: str | None = None
    slurm_state: str | None = None
    updated: str | None = None
    error: str | None = None
    evaluated_from: str | None = None


def ask_slurm(ids: list[str]) -> Mapping[str, str] | None:
    """SLURM's words for these jobs, None where it can't be asked."""
    from newllm.sweep.slurm_state import job_states

    try:
        return job_states(ids)
    except RunError:
        return None


def survey(
    sweep: Path, runs: Iterable[Path] | None = None, ask: Ask = ask_slurm, now: datetime | None = None
) -> list[Line]:
    """One line per run directory (default: all of the sweep's), in the order given or by name, as it is `now`.

    A run that claims to be running is believed if a process holds its lock; one that was handed to SLURM is judged by
    SLURM's word, for which `ask` is called once, or by its status.json where SLURM cannot be asked.
    """
    paths = runs_in(sweep) if runs is None else list(runs)
    launched = {name for launch in launches(sweep) if launch["alive"] for name in launch.get("runs", [])}
    directories = [RunDirectory(path) for path in paths]
    read = [_read(directory) for directory in directories]
    ids = list(dict.fromkeys(job for status in read if status.get("state") != "done" and (job := _job(status))))
    words = ask(ids) if ids else None
    now = now or datetime.now(UTC)
    return [
        _line(directory, status, directory.path.name in launched, words, now)
        for directory, status in zip(directories, read, strict=True)
    ]


def counts(lines: Iterable[Line]) -> dict[str, int]:
    """State -> number of runs, in the order of STATES, without those that are nought."""
    number = Counter(line.state for line in lines)
    return {state: number[state] for state in STATES if number[state]}


def _read(directory: RunDirectory) -> dict[str, Any]:
    """status.json; the state `unreadable` and a sentence if it or the results of a finished run are broken."""
    try:
        status = directory.status()
        if status.get("state") != "done":
            return status
        results = directory.results()
        if not results:
            raise ConfigError(f"{directory.path} is done but has no results; delete it to train afresh.")
        return {**status, "val/ppl": results.get("val/ppl")}
    except ConfigError as error:
        return {"state": "unreadable", "error": str(error)}
    except (TypeError, ValueError):  # JSON, but no object
        return {"state": "unreadable", "error": f"{directory.status_file} or results.json holds no JSON object."}


def _line(
    directory: RunDirectory, status: Mapping[str, Any], launched: bool, words: Mapping[str, str] | None, now: datetime
) -> Line:
    state, error, word = _truth(directory, status, words)
    if state != status.get("state"):  # or has the run ended, and said so, while others were asked?
        status = _read(directory)
        state, error, word = _truth(directory, status, words)
    progress = status.get("progress")
    progress = progress if isinstance(progress, dict) else {}
    job = _job(status)
    origin = directory.trained
    to_come = meaning(word) in ("waiting", "at work")
    line = Line(
        name=directory.path.name,
        path=str(directory.path),
        state=state,
        attended=(state == "running")
        or (state == "queued" and (launched or to_come or (job is not None and words is None)))
        or (state == "interrupted" and to_come),
        attempt=_whole(status.get("attempt")) or 0,
        phase=progress.get("phase"),
        step=_whole(progress.get("step")),
        steps=_whole(progress.get("steps")),
        epoch=_whole(progress.get("epoch")),
        loss=_real(progress.get("loss")),
        val_ppl=_real(status.get("val/ppl")),
        tokens_per_second=_real(progress.get("tokens_per_second")),
        seconds=_seconds(state, status, now),
        host=status.get("host"),
        pid=_whole(status.get("pid")),
        slurm=job,
        slurm_state=word,
        updated=status.get("updated"),
        error=error,
        evaluated_from=None if origin is directory else origin.path.name,
    )
    return replace(line, seconds_left=_left(line, directory)) if state == "running" else line


def _truth(
    directory: RunDirectory, status: Mapping[str, Any], words: Mapping[str, str] | None
) -> tuple[str, str | None, str | None]:
    """State, error, and SLURM's word if the run is unfinished in SLURM's hands."""
    job = _job(status)
    word = words.get(job, GONE) if job and words is not None and status.get("state") != "done" else None
    return *observed(directory, status, word), word


def observed(directory: RunDirectory, status: Mapping[str, Any], word: str | None) -> tuple[str, str | None]:
    """State and error of a run, from what its status.json claims, from its lock, and from SLURM's word for its job."""
    claimed, error = status.get("state", "queued"), status.get("error")
    if claimed not in (*get_args(State), "unreadable"):
        return "unreadable", f"{directory.status_file} has a state of another version of newllm: {claimed}."
    if word is None:
        here = _job(status) is None or status.get("host") == platform.node()
        if claimed == "running" and here and not _held(directory):
            return "interrupted", "It was cut off: its process is gone."
        return claimed, error
    means = meaning(word)
    if means == "waiting" and claimed in ("running", "interrupted"):
        return "queued", None
    if means in ("ended", "broken") and claimed in ("running", "queued") and not _held(directory):
        return "failed" if means == "broken" else "interrupted", error or f"SLURM says of job {_job(status)}: {word}."
    return claimed, error


def meaning(word: str | None) -> Literal["waiting", "at work", "broken", "ended"] | None:
    """What SLURM's word, such as ``PENDING (Resources)`` or ``CANCELLED by 0``, means for a run."""
    if word is None:
        return None
    first = word.split()[0].upper() if word.split() else ""
    if first in _WAITING:
        return "waiting"
    if first in _AT_WORK:
        return "at work"
    return "broken" if first in _BROKEN else "ended"


def _held(directory: RunDirectory) -> bool:
    try:
        return directory.in_use()
    except OSError:  # somebody else's folder, which may be read only: the run is believed
        return True


def _job(status: Mapping[str, Any]) -> str | None:
    return str(status["slurm"]) if status.get("slurm") else None


def _seconds(state: str, status: Mapping[str, Any], now: datetime) -> float | None:
    started = _time(status.get("started"))
    ended = now if state == "running" else _time(status.get("finished")) or _time(status.get("updated"))
    return max(0.0, (ended - started).total_seconds()) if started and ended and state != "queued" else None


def _left(line: Line, directory: RunDirectory) -> float | None:
    """Tokens of the steps to come, over the latest speed."""
    if not line.tokens_per_second or line.step is None or line.steps is None:
        return None
    try:
        config = directory.config()
        tokens = (line.steps - line.step) * int(config["trainer"]["batch_size"]) * int(config["data"]["seq_len"])
    except (ConfigError, KeyError, TypeError, ValueError):
        return None
    return tokens / line.tokens_per_second


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _real(value: Any) -> float | None:
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None
