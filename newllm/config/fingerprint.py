"""A hash of the files of a corpus that does not read their contents."""

import hashlib
import os
from pathlib import Path


def files_below(path: Path) -> list[Path]:
    """The file itself, or all files in a folder and its subfolders, sorted by name, without hidden ones."""
    if path.is_file():
        return [path]
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def path_fingerprint(path: str | Path, *, with_times: bool = False) -> str:
    """sha256 of the names (relative to `path`) and sizes of the files, so that copies have equal hashes.

    with_times: include modification times, to detect edits that keep the size (for caches on one machine).
    """
    root = Path(path).expanduser()
    digest = hashlib.sha256()
    for file in files_below(root):
        stat = file.stat()
        name = file.name if file == root else file.relative_to(root).as_posix()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns if with_times else ''}\n".encode())
    return digest.hexdigest()
