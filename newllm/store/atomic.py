"""Files that are written whole or not at all, even in a power cut; and whether a lock is held."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which replaces `path` when the block has succeeded.

    If `durable`, the file's contents reach the disk before its name does, and the folder is synchronised
    afterwards. If the block fails, the temporary file is deleted and `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the user's umask; safetensors would close its files to everybody else
        yield temporary
        temporary.chmod(mode)
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


LOCKS = "NEWLLM_LOCKS"  # "files" locks by files that name their process, where the file system has no locks
LOCK_BY_FILES = f"set {LOCKS}=files to lock by files"


def file_lock(path: Path) -> BaseFileLock:
    """The lock at `path`, not held yet. The holder's death frees it; of one by files on its own machine only."""
    if os.environ.get(LOCKS) == "files":  # another name, since a lock of the system leaves its file behind
        return SoftFileLock(path.with_name(f"{path.name.removesuffix('.lock')}.file.lock"))
    return FileLock(path)


def is_held(lock: Path) -> bool:
    """True if a living process holds this lock, or if that cannot be known, as in another user's folder."""
    probe = file_lock(lock)
    if not os.path.exists(probe.lock_file):
        return False
    try:
        probe.acquire(timeout=0)
    except (OSError, NotImplementedError):  # a Timeout is an OSError
        return True
    probe.release()
    return False


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Synchronise a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    with replacing(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(values: Any) -> str:
    """JSON for other programs. Floats keep their shortest exact form; NaN and infinity become null."""
    return json.dumps(finite(values), indent=2, ensure_ascii=False) + "\n"


def json_line(values: dict[str, Any]) -> str:
    return json.dumps(finite(values), ensure_ascii=False) + "\n"


def finite(value: Any) -> Any:
    """`value` with None in place of NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
