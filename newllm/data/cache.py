"""The cache folder, shared by all runs of a machine: one builds, the others wait, nobody sees a half-written folder."""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from newllm.errors import ConfigError, RunError


def cache_folder(runtime: Any = None) -> Path:
    """`runtime.cache_dir` (a node, an object or a mapping), else $NEWLLM_CACHE, else ~/.cache/newllm."""
    chosen = runtime.get("cache_dir") if isinstance(runtime, Mapping) else getattr(runtime, "cache_dir", None)
    return Path(chosen or os.environ.get("NEWLLM_CACHE") or "~/.cache/newllm").expanduser()


def key_of(**parts: Any) -> str:
    """16 hex digits that name what was made from `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def say(line: str) -> None:
    """A line for the user about work that takes a while; what belongs in a log goes into Dataset.notes."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder`; while another process has it, wait, and say so. The system frees it at death."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is building the {what}; waiting for it ({lock.lock_file})")
            lock.acquire()
    except OSError as error:
        raise ConfigError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror or error}); "
            "type runtime.cache_dir=FOLDER or set NEWLLM_CACHE"
        ) from None
    try:
        yield
    finally:
        lock.release()


def build_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` whole or not at all: filled under another name, synced to disk, renamed. Needs its lock."""
    rough = folder.with_name(folder.name + ".building")
    shutil.rmtree(rough, ignore_errors=True)  # left by a process that was killed
    rough.mkdir()
    try:
        fill(rough)
        for path in [*rough.iterdir(), rough]:
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        rough.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"no space left for {folder}; free some, or type runtime.cache_dir=FOLDER") from None
        raise
    finally:
        shutil.rmtree(rough, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
