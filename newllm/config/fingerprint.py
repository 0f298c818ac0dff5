"""A hash that stands for the files of a corpus, without reading them."""

import hashlib
import os
from pathlib import Path


def files_below(path: Path) -> list[Path]:
    """The file itself, or all files of a folder and its subfolders, sorted by name; hidden ones are left out."""
    if path.is_file():
        return [path]
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def path_fingerprint(path: str | Path, *, with_times: bool = False) -> str:
    """sha256 of the names (relative to `path`) and sizes of the files: the same for a copy elsewhere.

    with_times: modification times count too, so that an edit that keeps the size shows (for caches of this machine).
    """
    root = Path(path).expanduser()
    digest = hashlib.sha256()
    for file in files_below(root):
        stat = file.stat()
        name = file.name if file == root else file.relative_to(root).as_posix()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns if with_times else ''}\n".encode())
    return digest.hexdigest()
