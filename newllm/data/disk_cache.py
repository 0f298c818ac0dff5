"""The cache folder that all runs of a machine share: one process builds an entry, the others wait for it."""

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

from newllm.console import Screen
from newllm.errors import RunError, disk_is_full
from newllm.store import locks
from newllm.store.atomic import remove, sync
from newllm.streams import visible

Entry = TypeVar("Entry")


def cache_folder(runtime: Any = None) -> Path:
    """`runtime.cache_dir` (of a node, an object or a mapping), else $NEWLLM_CACHE, else ~/.cache/newllm."""
    configured = runtime.get("cache_dir") if isinstance(runtime, Mapping) else getattr(runtime, "cache_dir", None)
    return Path(configured or os.environ.get("NEWLLM_CACHE") or "~/.cache/newllm").expanduser()


def key_of(**parts: Any) -> str:
    """16 hex digits that identify an entry made from `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def find_or_build(
    folder: Path, what: str, load: Callable[[Path], Entry], fill: Callable[[Path], None]
) -> tuple[Entry, list[str]]:
    """The entry in `folder` as `load` reads it, and notes for the user.

    If the entry is missing, or `load` raises an exception because it is damaged, `fill` first writes it into an empty
    folder, which then takes the place of `folder`.
    """

    def existing() -> tuple[Entry | None, Exception | None]:
        try:
            return (load(folder) if folder.exists() else None), None
        except Exception as error:  # `tokenizers` raises bare Exception for a broken file
            return None, error

    entry, damage = existing()
    if entry is not None:
        return entry, []
    with locked(folder, what):
        entry, damage = existing()  # another process may have built it while this one waited
        if entry is not None:
            return entry, []
        notes = []
        if damage is not None:
            reason = str(damage).partition(";")[0]
            say(f"the {what} {folder} is damaged ({reason}); building it again")
            notes.append(f"the {what} {folder} was damaged ({reason}) and was built again")
        new = folder.with_name(folder.name + ".building")
        remove(new)  # left by a process that was killed
        try:
            new.mkdir()
            fill(new)
            for path in [*new.iterdir(), new]:
                sync(path)
            remove(folder)
            new.rename(folder)
            sync(folder.parent)
        except Exception as error:  # the libraries that write have errors of their own
            if disk_is_full(error):
                raise RunError(f"no space left for {folder}; free some, or type runtime.cache_dir=FOLDER") from None
            raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return load(folder), notes


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder`, after waiting for its holder. The system frees the lock if its holder dies."""
    lock = folder.with_name(f"{folder.name}.lock")
    about = f"the cache folder {folder.parent}", "type runtime.cache_dir=FOLDER or set NEWLLM_CACHE"
    with locks.locked(lock, *about, patience=0.0) as free:
        if free:
            yield
            return
    say(f"another process is building the {what}; waiting for it ({lock})")
    with locks.locked(lock, *about):
        yield


def say(line: str) -> None:
    """Print a line about slow work to stderr. Lines for the log of a run go to Dataset.notes."""
    print(visible(line), file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields a function that shows a count on the terminal: ``encoding: 1,234,567 tokens, 89,000/s``."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    started = time.monotonic()
    with Screen(stderr=True).status(what) as status:
        yield lambda count: status.update(
            f"{what}: {count:,} {unit}, {count / (time.monotonic() - started + 1e-9):,.0f}/s"
        )
