"""What became of a run, as its directory says it; and a word there for a worker that could not say any more."""

import signal
from contextlib import suppress
from typing import Literal

from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory, State

_END = ".end"  # a file in the run directory

# elsewhere: another process is at it
Fate = Literal["queued", "done", "failed", "interrupted", "elsewhere"]


def before_start(run: RunDirectory) -> tuple[Fate, str | None]:
    """`queued` if the run waits to be started; else what has happened to it meanwhile, and its error."""
    try:
        status = run.status()
    except ConfigError as error:
        return "failed", str(error)
    state = status.get("state")
    if state == "running":
        return ("elsewhere" if run.in_use() else "interrupted"), None
    if state is None:  # its directory has been deleted
        return "interrupted", f"{run.path} is no frozen run any more, since it has no status.json"
    return state, status.get("error")


def after_end(run: RunDirectory, status: int, stopped: bool) -> tuple[Fate, str | None]:
    """What a worker has made of the run, and its error.

    A worker that was killed leaves no final state: then it is `failed` with a sentence that says how the worker ended;
    `interrupted` or still `queued` if it was `stopped` by us.
    """
    try:
        found = run.status()
    except ConfigError as error:
        return "failed", str(error)
    state = found.get("state")
    if state in ("done", "failed", "interrupted"):
        return state, found.get("error")
    if run.in_use():
        return "elsewhere", None
    if stopped:
        if state == "running":
            note(run, "interrupted")
        return ("interrupted" if state == "running" else "queued"), None
    why = _how_it_ended(run, status)
    note(run, "failed", why)
    return "failed", why


def note(run: RunDirectory, state: State, error: str | None = None) -> None:
    """Write a state for a worker that is no more, unless another process has the directory or it cannot be written."""
    with suppress(ConfigError, OSError), run.locked():
        if state == "queued":
            run.update_status(state=state, error=error)
        else:
            run.end_attempt(state, error)


def _how_it_ended(run: RunDirectory, status: int) -> str:
    if status == -signal.SIGKILL:
        return (
            "killed by SIGKILL, as the system does when memory runs out; fewer runs at once (hydra.launcher.slots=1) "
            "or a smaller batch_size need less"
        )
    where = f"{run.path / 'stderr.log'} may say where"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}; {where}"
    return f"its process ended with status {status} and without results; {where}"


def ask_to_end(run: RunDirectory) -> None:
    """Have a run that shares its process with others save and end, for which a signal would end them all."""
    (run.path / _END).touch()


def asked_to_end(run: RunDirectory) -> bool:
    """Was that asked of the run? It is so once."""
    try:
        (run.path / _END).unlink()
    except OSError:
        return False
    return True
