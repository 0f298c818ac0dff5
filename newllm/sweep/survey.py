"""The runs of a sweep as they really are, read from their directories alone: no launcher has to be alive for it."""

import math
import platform
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from newllm.errors import ConfigError, RunError
from newllm.store.run_directory import RunDirectory, State, evaluated_run, find_runs
from newllm.sweep.launches import launches
from newllm.sweep.slurm_states import GONE, LOGS, job_states, meaning

# In the order in which they are shown; `unreadable` is a run whose status.json or results.json is broken.
STATES = ("running", "failed", "unreadable", "interrupted", "queued", "done")


@dataclass(frozen=True)
class Line:
    """One run as observed; what is not known is None.

    Args:
        state: one of STATES.
        attended: a process, a launcher that lives, or SLURM has it in hand. A queued run that is not waits for nobody.
        attempt, step, steps, epoch, loss, tokens_per_second: where the latest attempt is.
        phase: name of the first phase that it is in; the steps are that phase's iterations then.
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
    try:
        return job_states(ids)
    except RunError:
        return None


def survey(
    sweep: Path,
    runs: Iterable[Path] | None = None,
    ask: Callable[[list[str]], Mapping[str, str] | None] = ask_slurm,
    now: datetime | None = None,
) -> list[Line]:
    """One line per run directory (default: all of the sweep's), in the order given or by name, as it is `now`.

    A run that claims to be running is believed if a process holds its lock. One that was handed to SLURM is judged by
    SLURM's word, for which `ask` is called once, or by its status.json where SLURM cannot be asked.
    """
    directories = [RunDirectory(path) for path in (runs_in(sweep) if runs is None else runs)]
    launched = {name for launch in launches(sweep) if launch["alive"] for name in launch.get("runs", [])}
    read = [_read(directory) for directory in directories]
    jobs = dict.fromkeys(job for status in read if status["state"] != "done" and (job := _job(status)))
    words = ask(list(jobs)) if jobs else None
    return [
        observe(directory, words, status, directory.path.name in launched, now)
        for directory, status in zip(directories, read, strict=True)
    ]


def observe(
    directory: RunDirectory,
    words: Mapping[str, str] | None = None,
    status: dict[str, Any] | None = None,
    launched: bool = False,
    now: datetime | None = None,
) -> Line:
    """One line of `survey`.

    Args:
        words: SLURM's word for each job that it knows; None where it was not asked.
        status: what status.json said before SLURM was asked.
        launched: does the launcher live that the run was handed to?
    """
    status = status or _read(directory)
    state, error, word = _judge(directory, status, words)
    if state != status["state"]:  # or has the run ended, and said so, while SLURM was asked?
        status = _read(directory)
        state, error, word = _judge(directory, status, words)
    progress = status["progress"] if isinstance(status.get("progress"), dict) else {}
    numbers = {name: _number(progress.get(name)) for name in ("step", "steps", "epoch", "loss", "tokens_per_second")}
    left = None
    if state == "running" and numbers["tokens_per_second"] and None not in (numbers["step"], numbers["steps"]):
        per_step = _tokens_per_step(directory.path)
        left = (numbers["steps"] - numbers["step"]) * per_step / numbers["tokens_per_second"] if per_step else None
    job, origin = _job(status), directory.trained
    in_slurm = meaning(word) in ("waiting", "at work")
    waits = launched or in_slurm or (job is not None and words is None)
    return Line(
        name=directory.path.name,
        path=str(directory.path),
        state=state,
        attended=state == "running" or (state == "queued" and waits) or (state == "interrupted" and in_slurm),
        attempt=_number(status.get("attempt")) or 0,
        phase=progress.get("phase"),
        **numbers,
        val_ppl=_number(status.get("val/ppl")),
        seconds=_seconds(state, status, now or datetime.now(UTC)),
        seconds_left=left,
        host=status.get("host"),
        pid=_number(status.get("pid")),
        slurm=job,
        slurm_state=word,
        updated=status.get("updated"),
        error=error,
        evaluated_from=None if origin is directory else origin.path.name,
    )


def sweeps_in(folder: Path) -> dict[Path, list[Path]]:
    """Sweep folder -> its run directories by name. `folder` is a run directory, a sweep, or a folder of sweeps.

    Raises ConfigError if there is no run in it.
    """
    sweeps: dict[Path, list[Path]] = {}
    for run in find_runs(folder):
        if evaluated_run(run) is None:
            sweeps.setdefault(run.absolute().parent if run == folder else run.parent, []).append(run)
    if not sweeps:
        raise ConfigError(
            f"{folder} holds no runs, which are folders with a config.yaml; sweeps land in outputs/sweeps and single "
            "runs in outputs/runs."
        )
    return sweeps


def runs_in(folder: Path) -> list[Path]:
    """The run directories in a folder, by name."""
    return sorted(file.parent for file in folder.glob("[!.]*/config.yaml"))


def counts(lines: Iterable[Line]) -> dict[str, int]:
    """State -> number of runs, in the order of STATES, without zeros."""
    number = Counter(line.state for line in lines)
    return {state: number[state] for state in STATES if number[state]}


def before_worker(run: RunDirectory) -> tuple[str, str | None]:
    """`queued` if the run waits to be started; else what has become of it meanwhile, and its error.

    `elsewhere`: another process is at work on it.
    """
    if not run.status_file.exists():
        return "interrupted", f"{run.path} is no frozen run any more, since it has no status.json"
    line = observe(run)
    return {"running": "elsewhere", "unreadable": "failed"}.get(line.state, line.state), line.error


def after_worker(run: RunDirectory, status: int, stopped: bool) -> tuple[str, str | None]:
    """State and error of a run whose worker has ended with this exit status; `elsewhere` as in `before_worker`.

    A worker that was killed leaves no final state. Then the run is `failed`, with a sentence that says how the worker
    ended, or `interrupted` or still `queued` if we `stopped` it.
    """
    found = _read(run)
    if found["state"] not in ("queued", "running"):
        return "failed" if found["state"] == "unreadable" else found["state"], found.get("error")
    if run.in_use():
        return "elsewhere", None
    if stopped:
        if found["state"] == "queued":
            return "queued", None
        note(run, "interrupted")
        return "interrupted", None
    why = f"its process ended with status {status} and without results; {run.path / 'stderr.log'} may say where"
    if status < 0:
        why = f"ended by {signal.Signals(-status).name}; {run.path / 'stderr.log'} may say where"
    if status == -signal.SIGKILL:
        why = (
            "killed by SIGKILL, as the system does when memory runs out; fewer runs at once (hydra.launcher.slots=1) "
            "or a smaller batch_size need less"
        )
    note(run, "failed", why)
    return "failed", why


def note(run: RunDirectory, state: State, error: str | None = None) -> None:
    """Write a state for a worker that has ended, unless another process has the directory or it cannot be written."""
    with suppress(ConfigError, OSError), run.locked():
        if state == "queued":
            run.update_status(state=state, error=error)
        else:
            run.end_attempt(state, error)


def _read(directory: RunDirectory) -> dict[str, Any]:
    """status.json; the state `unreadable` and a sentence if it or the results of a finished run are broken."""
    try:
        status = {"state": "queued", **directory.status()}
        if status["state"] == "done":
            status["val/ppl"] = directory.results().get("val/ppl")
            if not directory.results():
                raise ConfigError(f"{directory.path} is done but has no results; delete it to train afresh.")
    except ConfigError as error:
        return {"state": "unreadable", "error": str(error)}
    except (TypeError, ValueError):  # JSON, but no object
        return {"state": "unreadable", "error": f"{directory.status_file} or results.json holds no JSON object."}
    if status["state"] not in get_args(State):
        why = f"{directory.status_file} has a state of another version of newllm: {status['state']}."
        return {"state": "unreadable", "error": why}
    return status


def _judge(
    directory: RunDirectory, status: Mapping[str, Any], words: Mapping[str, str] | None
) -> tuple[str, str | None, str | None]:
    """State and error, from what status.json claims, from the lock, and from SLURM's word for the run's job; and that
    word, if the run is not done."""
    claimed, error, job = status["state"], status.get("error"), _job(status)
    if job is None or words is None or claimed == "done":
        here = job is None or status.get("host") == platform.node()
        if claimed == "running" and here and not _held(directory):
            return "interrupted", "It was cut off: its process is gone.", None
        return claimed, error, None
    word = words.get(job, GONE)
    means = meaning(word)
    if means == "waiting" and claimed in ("running", "interrupted"):
        return "queued", None, word
    if means in ("broken", "ended") and claimed in ("running", "queued", "interrupted") and not _held(directory):
        state = "failed" if means == "broken" and claimed != "interrupted" else "interrupted"
        began = " before the run began" if claimed == "queued" else ""
        log = directory.path.parent / LOGS / f"{job}_0_log.err"
        more = f"; {log} says more" if state == "failed" and log.exists() else ""
        return state, error or f"SLURM ended job {job}{began}: {word}{more}.", word
    return claimed, error, word


def _held(directory: RunDirectory) -> bool:
    try:
        return directory.in_use()
    except OSError:  # another user's folder may be read only; the run is believed then
        return True


def _job(status: Mapping[str, Any]) -> str | None:
    return str(status["slurm"]) if status.get("slurm") else None


def _seconds(state: str, status: Mapping[str, Any], now: datetime) -> float | None:
    """How long the latest attempt has taken, unless the run waits for another one."""
    if state == "queued":
        return None
    try:
        ended = now if state == "running" else datetime.fromisoformat(status.get("finished") or status["updated"])
        return max(0.0, (ended - datetime.fromisoformat(status["started"])).total_seconds())
    except (KeyError, TypeError, ValueError):
        return None


@lru_cache(maxsize=1000)
def _tokens_per_step(run: Path) -> int | None:
    try:
        config = RunDirectory(run).config()
        return int(config["trainer"]["batch_size"]) * int(config["data"]["seq_len"])
    except (ConfigError, KeyError, TypeError, ValueError):
        return None


def _number(value: Any) -> Any:
    """A finite number as it is, else None: status.json may be of another version."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else None
