"""One small file per launch: what was started, by whom, how; so that any shell can ask later and try again."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from newllm.store.atomic import is_held, write_json

_FOLDER = Path(".sweep") / "launches"
_LOCK = Path(".sweep") / "lock"


@dataclass(frozen=True)
class Policy:
    """How failures are met, and how many runs train together.

    Args:
        retries: further attempts of a run that failed.
        fail_fast: the first failure (after its retries) stops the sweep; running runs save and end.
        canary: one run goes first, alone; the others start when it is done.
        pack: this many runs that differ in seeds or real numbers only train in one process as one batched model;
            "auto": as many as are measured to pay. None: each has a process of its own.
    """

    retries: int = 0
    fail_fast: bool = False
    canary: bool = False
    pack: int | Literal["auto"] | None = None


@contextmanager
def recorded(
    sweep: Path,
    backend: Literal["local", "slurm"],
    launcher: Mapping[str, Any],
    policy: Policy,
    runs: Sequence[Path],
) -> Iterator[Callable[..., None]]:
    """Write the file of a launch and hold its lock within this block; yields a function that adds fields to it.

    launcher: the options from which the launcher was built.
    """
    now = datetime.now(UTC)
    name = f"{now:%Y%m%d-%H%M%S-%f}-{os.getpid()}"
    file = sweep / _FOLDER / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "backend": backend,
        "launcher": dict(launcher),
        "policy": asdict(policy),
        "host": platform.node(),
        "pid": os.getpid(),
        "started": now.isoformat(timespec="seconds"),
        "ended": None,
        "runs": [run.name for run in runs],
    }

    def update(**changes: Any) -> None:
        content.update(changes)
        write_json(file, content)

    with FileLock(file.with_suffix(".lock")):
        update()
        try:
            yield update
        finally:
            update(ended=datetime.now(UTC).isoformat(timespec="seconds"))


def launches(sweep: Path) -> list[dict[str, Any]]:
    """The launches of a sweep folder, oldest first, each with `alive` (its process holds the lock) and `file`.

    A file that cannot be read is left out: it says nothing that the run directories do not say.
    """
    found = []
    for file in sorted((sweep / _FOLDER).glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            alive = not content.get("ended") and is_held(file.with_suffix(".lock"))
            found.append({**content, "alive": alive, "file": str(file)})
    return found


@contextmanager
def choosing(sweep: Path) -> Iterator[None]:
    """Hold the sweep folder (made if need be) while runs are chosen and queued, so that two launchers do not take the
    same run."""
    lock = sweep / _LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield
