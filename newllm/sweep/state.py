"""The states of a sweep's runs, read from their directories, their locks and SLURM; no launcher has to be alive."""

import math
import platform
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from newllm.errors import ConfigError, RunError, signal_name
from newllm.store.intact import is_file
from newllm.store.run_directory import RunDirectory, State
from newllm.store.run_names import runs_in
from newllm.sweep.launches import launches
from newllm.sweep.slurm_states import GONE, LOGS, job_states, meaning

# In the order in which they are shown; `unreadable` is a run whose status.json or results.json is broken.
STATES = ("running", "failed", "unreadable", "interrupted", "queued", "done")


@dataclass(frozen=True)
class RunState:
    """How a run stands; what is not known is None. `newllm status --json` prints these fields."""

    name: str
    path: str
    state: str  # one of STATES
    number: int | None = None  # its place in the folder that the table is of
    attended: bool = False  # its process, a living launcher or SLURM takes care of it; else nobody starts a queued run
    attempt: int = 0
    phase: str | None = None  # the first phase that it is in; the steps are that phase's iterations then
    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    loss: float | None = None
    val_ppl: float | None = None  # of a finished run
    tokens_per_second: float | None = None
    seconds: float | None = None  # duration of the latest attempt
    seconds_left: float | None = None  # at the latest speed, without the evaluation
    host: str | None = None
    pid: int | None = None
    slurm: str | None = None  # job id
    slurm_state: str | None = None
    updated: str | None = None
    error: str | None = None  # one sentence
    evaluated_from: str | None = None  # the run's name, if this is an evaluation of it under other settings
    labels: Mapping[str, Any] = field(default_factory=dict)  # name, tags, notes, as far as given


def read_states(sweep: Path, runs: Iterable[Path] | None = None) -> list[RunState]:
    """The states of these run directories in the order given, or of all runs of the sweep by name.

    A run that claims to be running is believed if a process holds its lock. A run that was handed to SLURM has the
    state of its job, or that of its status.json where SLURM does not answer; SLURM is asked once for all runs.
    """
    directories = [RunDirectory(run) for run in (runs_in(sweep) if runs is None else runs)]
    launched = {name for launch in launches(sweep) if launch["alive"] for name in launch.get("runs", [])}
    statuses = [_status(directory) for directory in directories]
    unfinished_jobs = [job for status in statuses if status["state"] != "done" and (job := _job(status))]
    jobs = None
    if unfinished_jobs:
        with suppress(RunError):
            jobs = job_states(unfinished_jobs)
    return [
        _run_state(directory, status, jobs, directory.path.name in launched)
        for directory, status in zip(directories, statuses, strict=True)
    ]


def read_state(directory: RunDirectory, jobs: Mapping[str, str] | None = None) -> RunState:
    """The state of one run. jobs: SLURM's state of each job; None if SLURM was not asked."""
    return _run_state(directory, _status(directory), jobs, launched=False)


def count_states(runs: Iterable[RunState]) -> dict[str, int]:
    """State -> number of runs, in the order of STATES, without zeros."""
    number = Counter(run.state for run in runs)
    return {state: number[state] for state in STATES if number[state]}


def before_worker(run: RunDirectory) -> tuple[str, str | None]:
    """State and error of a run whose turn has come: `queued` if it is still to be started, `elsewhere` if another
    process works on it."""
    if not run.status_file.exists():
        return "interrupted", f"{run.path} cannot be started, since its status.json is gone"
    found = read_state(run)
    if found.state == "unreadable":
        write_state(run, "failed", found.error)
    if found.state == "done" and run.waits():
        return "queued", None
    return {"running": "elsewhere", "unreadable": "failed"}.get(found.state, found.state), found.error


def after_worker(run: RunDirectory, exit_status: int, stopped: bool) -> tuple[str, str | None]:
    """State and error of a run whose worker has ended; `elsewhere` if another process works on it.

    A worker that was killed leaves no final state. Then the run is `failed`, with a sentence that says how the worker
    ended, or `interrupted` or still `queued` if we `stopped` it.
    """
    status = _status(run)
    if status["state"] == "done" and run.asked():  # evaluators that it still lacks; the training stays done
        error = status.get("error") or f"its evaluation ended with status {exit_status} and without results"
        return ("interrupted" if stopped else "failed"), error
    if status["state"] not in ("queued", "running"):
        return "failed" if status["state"] == "unreadable" else status["state"], status.get("error")
    if run.in_use():
        return "elsewhere", None
    if stopped:
        if status["state"] == "queued":
            return "queued", None
        write_state(run, "interrupted")
        return "interrupted", None
    hint = f"{run.path / 'stderr.log'} may say where"
    if exit_status == -signal.SIGKILL:
        error = (
            "killed by SIGKILL, as the system does when memory runs out; fewer runs at once (hydra.launcher.slots=1) "
            "or a smaller batch_size need less"
        )
    elif exit_status < 0:
        error = f"ended by {signal_name(-exit_status)}; {hint}"
    else:
        error = f"its process ended with status {exit_status} and without results; {hint}"
    write_state(run, "failed", error)
    return "failed", error


def write_state(run: RunDirectory, state: State, error: str | None = None, traceback: str | None = None) -> None:
    """Write the state of a run whose worker has ended, unless another process has the directory or it is read only."""
    with suppress(ConfigError, OSError), run.locked():
        if run.is_done():  # only an evaluation of it has failed
            run.update_status(error=error, traceback=traceback)
        elif state == "queued":
            run.update_status(state=state, error=error)
        else:
            run.end_attempt(state, error, traceback)


def _run_state(
    directory: RunDirectory, status: Mapping[str, Any], jobs: Mapping[str, str] | None, launched: bool
) -> RunState:
    """The state of a run whose status.json was read before SLURM was asked. launched: a living launcher has it."""
    state, error, job_state = _observed_state(directory, status, jobs)
    if state != status["state"]:  # it may have ended and written so in the meantime
        status = _status(directory)
        state, error, job_state = _observed_state(directory, status, jobs)
    progress = status.get("progress") or {}
    keys = ("step", "steps", "epoch", "loss", "tokens_per_second", "seconds_left")
    seconds = None
    if state != "queued":
        with suppress(KeyError, TypeError, ValueError):
            written = status.get("finished") or status.get("updated", "")
            ended = datetime.now(UTC) if state == "running" else datetime.fromisoformat(written)
            seconds = max(0.0, (ended - datetime.fromisoformat(status["started"])).total_seconds())
    job, evaluated = _job(status), directory.trained
    in_slurm = meaning(job_state) in ("waiting", "at work")
    waits = launched or in_slurm or (job is not None and jobs is None)
    return RunState(
        name=directory.path.name,
        path=str(directory.path),
        state=state,
        attended=state == "running" or (state == "queued" and waits) or (state == "interrupted" and in_slurm),
        attempt=_number(status.get("attempt")) or 0,
        phase=progress.get("phase"),
        **{key: _number(progress.get(key)) for key in keys},
        val_ppl=_number(status.get("val/ppl")),
        seconds=seconds,
        host=status.get("host"),
        pid=_number(status.get("pid")),
        slurm=job,
        slurm_state=job_state,
        updated=status.get("updated"),
        error=error,
        evaluated_from=None if evaluated is directory else evaluated.path.name,
        labels=status.get("labels") or {},
    )


def _status(directory: RunDirectory) -> dict[str, Any]:
    """status.json; the state `unreadable` and a sentence if it or the results of a finished run are broken."""
    try:
        directory.require_config()
        status = {"state": "queued", **directory.status()}
        if status["state"] == "done" and not is_file(directory.results_file):
            status |= {"state": "interrupted", "error": directory.lost_results()}
        if status["state"] == "done":
            status["val/ppl"] = directory.results(status).get("val/ppl")
    except ConfigError as error:
        return {"state": "unreadable", "error": str(error)}
    if status["state"] not in get_args(State):
        unknown = f"{directory.status_file} has a state of another version of newllm: {status['state']}."
        return {"state": "unreadable", "error": unknown}
    return status


def _observed_state(
    directory: RunDirectory, status: Mapping[str, Any], jobs: Mapping[str, str] | None
) -> tuple[str, str | None, str | None]:
    """State, error and SLURM's state of the job, from what status.json claims, from the lock and from SLURM."""
    claimed, error, job = status["state"], status.get("error"), _job(status)
    if job is None or jobs is None or claimed == "done":
        here = job is None or status.get("host") == platform.node()
        if claimed == "running" and here and not directory.in_use():
            return "interrupted", "Its process is gone.", None
        return claimed, error, None
    job_state = jobs.get(job, GONE)
    means = meaning(job_state)
    if means == "waiting" and claimed in ("running", "interrupted"):  # requeued
        return "queued", None, job_state
    if means in ("broken", "ended") and claimed in ("running", "queued", "interrupted") and not directory.in_use():
        state = "failed" if means == "broken" and claimed != "interrupted" else "interrupted"
        began = " before the run began" if claimed == "queued" else ""
        log = directory.path.parent / LOGS / f"{job}_0_log.err"
        more = f"; {log} says more" if state == "failed" and log.exists() else ""
        return state, error or f"SLURM ended job {job}{began}: {job_state}{more}.", job_state
    return claimed, error, job_state


def _job(status: Mapping[str, Any]) -> str | None:
    return str(status["slurm"]) if status.get("slurm") else None


def _number(value: Any) -> Any:
    """A finite number as it is, else None: status.json may be of another version."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else None
