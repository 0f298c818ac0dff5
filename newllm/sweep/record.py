"""One small file per launch: what was started, by whom, how; so that any shell can ask later and try again."""

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from newllm.store.atomic import is_held, write_json
from newllm.sweep.policy import Policy

FOLDER = Path(".sweep") / "launches"
_LOCK = Path(".sweep") / "lock"


class Record:
    """The file of one launch: backend, launcher (the options it was built from), policy, runs, host, pid, times."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file, self.content = file, content
        write_json(file, content)

    def update(self, **changes: Any) -> None:
        self.content |= changes
        write_json(self.file, self.content)


@contextmanager
def begin(
    sweep: Path,
    backend: Literal["local", "slurm"],
    launcher: Mapping[str, Any],
    policy: Policy,
    runs: Sequence[Path],
) -> Iterator[Record]:
    """Write the record and hold its lock while the launcher lives; `ended` is set when the block is left."""
    folder = sweep / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    file = folder / f"{now:%Y%m%d-%H%M%S-%f}-{os.getpid()}.json"
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
    with FileLock(file.with_suffix(".lock")):
        record = Record(file, content)
        try:
            yield record
        finally:
            record.update(ended=datetime.now(UTC).isoformat(timespec="seconds"))


@contextmanager
def choosing(sweep: Path) -> Iterator[None]:
    """Hold the sweep folder (made if need be) while runs are chosen and queued: two launchers must not both find a run
    free."""
    lock = sweep / _LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


def launches(sweep: Path) -> list[dict[str, Any]]:
    """The records of a sweep folder, oldest first, each with `alive` (its process holds the lock) and `file`.

    A record that cannot be read is left out: it says nothing that the run directories do not say.
    """
    found = []
    for file in sorted((sweep / FOLDER).glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            found.append(
                {**content, "alive": not content.get("ended") and is_held(file.with_suffix(".lock")), "file": str(file)}
            )
    return found
