"""Locks of folders, which the system frees when their holder dies, and locks by files where it has none."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from newllm.errors import ConfigError

LOCKS = "NEWLLM_LOCKS"  # "files" locks by files that name their process, where the file system has no locks


def file_lock(path: Path) -> BaseFileLock:
    """The lock at `path`, not held yet. The holder's death frees it; of one by files on its own machine only."""
    if os.environ.get(LOCKS) == "files":  # another name, since a lock of the system leaves its file behind
        return SoftFileLock(path.with_name(f"{path.name.removesuffix('.lock')}.file.lock"))
    return FileLock(path)


@contextmanager
def locked(path: Path, what: str, instead: str, patience: float = -1.0) -> Iterator[bool]:
    """Hold the lock at `path`, whose folder is created, within this block. Yields whether it holds it.

    patience: seconds to wait for another holder; -1.0: as long as it takes, so that the lock is held.
    Raises ConfigError, which names the folder as `what`, if it cannot be written or has no locks; `instead`: what to do
    then.
    """
    lock = file_lock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = True
        try:
            lock.acquire(timeout=patience, poll_interval=0.01)
        except Timeout:
            held = False
    except (OSError, NotImplementedError) as error:
        unlockable = isinstance(error, NotImplementedError) or error.errno in (errno.ENOLCK, errno.EOPNOTSUPP)
        problem, advice = ("locked", f"set {LOCKS}=files to lock by files, or ") if unlockable else ("written", "")
        reason = getattr(error, "strerror", None) or "its file system has no locks"
        raise ConfigError(f"{what} cannot be {problem} ({reason}); {advice}{instead}") from None
    try:
        yield held
    finally:
        if held:
            lock.release()


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
