"""One small file per launch, which records what was started and how, so that any shell can show or retry it."""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from newllm.errors import ConfigError
from newllm.store.intact import Damaged, read_json, write_json
from newllm.store.locks import file_lock, is_held, locked
from newllm.store.own_code import sealed, use_code_of
from newllm.trust import code_folder, named, use_folder

_FOLDER = Path(".sweep") / "launches"


@dataclass(frozen=True)
class Policy:
    """How failures are handled, and how many runs train together.

    Args:
        retries: further attempts of a run that failed.
        fail_fast: the first failure (after its retries) stops the sweep; running runs save and stop.
        canary: start one run first, and the others only when it is done.
        pack: train this many runs that differ only in seeds or real numbers as one batched model in one process;
            "auto": as many as turn out fastest. None: one process per run.
    """

    retries: int = 0
    fail_fast: bool = False
    canary: bool = False
    pack: int | Literal["auto"] | None = None


def use_code_of_launch(record: Mapping[str, Any]) -> None:
    """Before a launch is repeated: make its packages importable. Raises ConfigError if somebody else made it for SLURM,
    since the options of its jobs would be executed by a shell."""
    if use_code_of(record, *_sealed_options(record)):
        if record["config_dir"]:
            use_folder(Path(record["config_dir"]))
    elif record["backend"] == "slurm":
        raise ConfigError(
            f"{record['file']} was not written by a launch of yours, so its options for SLURM are not used; type the "
            "training command."
        )


def _sealed_options(record: Mapping[str, Any]) -> list[Any]:
    return [record["backend"], record["launcher"], record.get("config_dir")]


@contextmanager
def recorded(
    sweep: Path,
    backend: Literal["local", "slurm"],
    launcher: Mapping[str, Any],
    policy: Policy,
    runs: Sequence[Path],
) -> Iterator[Callable[..., None]]:
    """Write the file of a launch and hold its lock within this block; yields a function that adds fields.

    launcher: the constructor arguments of the launcher.
    """
    now = datetime.now(UTC)
    name = f"{now:%Y%m%d-%H%M%S-%f}-{os.getpid()}"
    file = sweep / _FOLDER / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "backend": backend,
        "launcher": dict(launcher),
        "policy": asdict(policy),
        "config_dir": str(code_folder()) if code_folder() else None,
        "host": platform.node(),
        "pid": os.getpid(),
        "started": now.isoformat(timespec="seconds"),
        "ended": None,
        "runs": [run.name for run in runs],
    }
    content = sealed(content, named(), *_sealed_options(content))

    def update(**changes: Any) -> None:
        content.update(changes)
        write_json(file, content)

    with file_lock(file.with_suffix(".lock")):
        update()
        try:
            yield update
        finally:
            update(ended=datetime.now(UTC).isoformat(timespec="seconds"))


def launches(sweep: Path, strict: bool = False) -> list[dict[str, Any]]:
    """The launches of a sweep folder, oldest first, each with `alive` (its process holds the lock) and `file`.

    Skips files that cannot be read, since the run directories hold all that matters; strict: raises Damaged.
    """
    found = []
    for file in sorted((sweep / _FOLDER).glob("*.json")):
        content = None
        with nullcontext() if strict else suppress(Damaged):
            content = read_json(file, "delete it and type the training command again")
        if content is not None:
            alive = not content.get("ended") and is_held(file.with_suffix(".lock"))
            found.append({**content, "alive": alive, "file": str(file)})
    return found


@contextmanager
def choosing(sweep: Path) -> Iterator[None]:
    """Hold the sweep's lock while its runs are chosen and queued, since two launchers must not take the same run.

    Creates the folder if needed. Raises ConfigError if that is not possible.
    """
    with locked(sweep / ".sweep" / "lock", f"the sweep's folder {sweep}", "choose another with hydra.sweep.dir=FOLDER"):
        yield
