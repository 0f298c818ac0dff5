"""Files that are written whole or not at all, even in a power cut."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
