"""The cache folder that all runs of a machine share: one process builds an entry, the others wait for it."""

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from newllm.errors import ConfigError, RunError

Entry = TypeVar("Entry")


def cache_folder(runtime: Any = None) -> Path:
    """`runtime.cache_dir` (of a node, an object or a mapping), else $NEWLLM_CACHE, else ~/.cache/newllm."""
    chosen = runtime.get("cache_dir") if isinstance(runtime, Mapping) else getattr(runtime, "cache_dir", None)
    return Path(chosen or os.environ.get("NEWLLM_CACHE") or "~/.cache/newllm").expanduser()


def key_of(**parts: Any) -> str:
    """16 hex digits that identify an entry made from `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def find_or_build(folder: Path, what: str, load: Callable[[Path], Entry | None], fill: Callable[[Path], None]) -> Entry:
    """The entry in `folder`. If `load` returns None, `fill` first writes the entry into a new folder."""
    entry = load(folder)
    if entry is None:
        with locked(folder, what):
            entry = load(folder)  # another process may have built it while this one waited
            if entry is None:
                build_folder(folder, fill)
                entry = load(folder)
                assert entry is not None, f"{folder} cannot be read right after it was written"
    return entry


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder`; waits for its holder. The system frees the lock if its holder dies."""
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
    """Write `folder` atomically: fill it under another name, sync it, rename it. The caller holds its lock."""
    rough = folder.with_name(folder.name + ".building")
    shutil.rmtree(rough, ignore_errors=True)  # left by a process that was killed
    rough.mkdir()
    try:
        fill(rough)
        for path in [*rough.iterdir(), rough]:
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)  # if damaged
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


def say(line: str) -> None:
    """Print a line about slow work to stderr. Lines for the log of a run go to Dataset.notes."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """``encoding: 1,234,567 tokens, 89,000/s`` on a terminal, updated at most ten times per second."""

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self.started = self.shown = time.monotonic()

    def show(self, count: int) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and now - self.shown > 0.1:
            line = f"\r{self.what}: {count:,} {self.unit}, {count / (now - self.started):,.0f}/s "
            print(line, end="", file=sys.stderr, flush=True)
            self.shown = now

    def end(self) -> None:
        if self.shown > self.started:
            print(file=sys.stderr)
