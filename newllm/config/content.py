"""What is read of a user's file or folder: its files, what is left out, and a hash of their content.

A hash identifies what was read wherever it lies and whatever it is called; names are labels.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from newllm.errors import ConfigError

LARGE = 64 << 20  # bytes; the hash of a larger text is also kept in the cache folder
SETTLED = 2_000_000_000  # nanoseconds; a file that changed since may change again without another time stamp
RUN_FILES = {"config.yaml", "status.json"}  # of a run directory; a folder with both holds results and no text


@dataclass(frozen=True)
class Found:
    """The files that are read, in the order of their names, with the name or kind by which each counts.

    left_out: kind of thing -> how many are not read.
    """

    files: list[tuple[str, Path]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def sentence(self) -> str:
        """``left out: 1 broken link, 2 files of another kind``, empty if everything is read."""
        parts = [f"{count:,} {kind.replace('*', 's' * (count > 1))}" for kind, count in sorted(self.left_out.items())]
        return f"left out: {', '.join(parts)}" if parts else ""


def find(path: str | Path, patterns: Sequence[str]) -> Found:
    """The readable files at `path`, a file or a folder, that fit one of `patterns`; none if there is nothing at `path`.

    patterns: as in .gitignore, in any case: ``*.txt`` fits at any depth, ``/name`` only in the folder itself. A file
    counts as its pattern, so that names do not matter, and with the pattern ``*`` as its name.
    Reads no hidden files and no run directories in the folder, and follows links to files, but none to folders.
    Raises ConfigError for the root of the file system and the user's home.
    """
    root, found = Path(path).expanduser(), Found()
    try:
        if root.is_file():
            kind = _kind(root.name, patterns)
            return Found([(root.name if kind == "*" else kind, root)]) if kind else found
        place = Path(os.path.abspath(root))
    except OSError:  # a name that is too long, or a folder that must not be entered
        return found
    if place in (place.parent, Path(os.path.expanduser("~"))):
        which = "the root of the file system" if place == place.parent else "your home"
        raise ConfigError(f"{place} is {which}, and all files in it would be read; name the folder that is meant.")
    relative: list[tuple[str, str, Path]] = []
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = [*os.scandir(folder)]
        except (OSError, ValueError):  # a ValueError for a NUL in the name
            if folder != root:
                found.left_out["unreadable folder*"] += 1
            continue
        if folder != root and {entry.name for entry in entries} >= RUN_FILES:
            found.left_out["folder* of results"] += 1
            continue
        for entry in entries:
            if reason := _left_out(entry):
                found.left_out[reason] += 1
            elif entry.is_dir():
                folders.append(Path(entry.path))
            else:
                name = Path(entry.path).relative_to(root).as_posix()
                if not (kind := _kind(name, patterns)):
                    found.left_out["file* of another kind"] += 1
                elif not os.access(entry.path, os.R_OK):
                    found.left_out["unreadable file*"] += 1
                else:
                    relative.append((name, name if kind == "*" else kind, Path(entry.path)))
    found.files.extend((kind, file) for _, kind, file in sorted(relative))
    return found


def _left_out(entry: os.DirEntry[str]) -> str:
    """Why an entry of a folder is not even looked at, empty if it is a file or a folder to look at."""
    if entry.name.startswith("."):
        return "hidden file* or folder*"
    try:
        if entry.is_symlink() and not os.path.exists(entry.path):
            return "broken link*"
        if entry.is_dir():
            return "linked folder*" if entry.is_symlink() else ""
        return "" if entry.is_file() else "pipe*, socket* or device*"
    except OSError:
        return "unreadable file*"


def _kind(name: str, patterns: Sequence[str]) -> str | None:
    """The first of the patterns that the name, relative to the folder, fits."""
    rooted = f"/{name.lower()}"
    return next((one for one in patterns if fnmatchcase(rooted, one if one.startswith("/") else f"*/{one}")), None)


def content_hash(path: str | Path, patterns: Sequence[str]) -> str | None:
    """32 hex digits of the content of the files that `find` gives, None without any.

    Equal for copies. Files are read once in a process while they stay unchanged, and large ones once on a machine: a
    file counts as unchanged while its place, size and both times are the same, of which no program sets the second.
    """
    files = find(path, patterns).files
    if not files:
        return None
    try:
        before = _stamps(files)
        settled = time.time_ns() - max(max(stamp[-2:]) for stamp in before) > SETTLED
        size = sum(stamp[2] for stamp in before)
        key = hashlib.sha256(json.dumps([[kind for kind, _ in files], before]).encode()).hexdigest()
        note = Path(os.environ.get("NEWLLM_CACHE") or "~/.cache/newllm").expanduser() / "hashes" / key[:32]
        known = _read.get(key) or (_from_note(note, key) if size >= LARGE else None)
        if known is None:
            digest = hashlib.sha256()
            for kind, file in files:
                with open(file, "rb") as stream:
                    digest.update(f"{kind}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
            known = digest.hexdigest()[:32]
            if settled and size >= LARGE and _stamps(files) == before:
                with suppress(OSError):
                    note.parent.mkdir(parents=True, exist_ok=True)
                    note.write_text(f"{known} {_seal(key, known)}\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}: {error.filename}).") from None
    if settled:
        _read[key] = known
    return known


_read: dict[str, str] = {}  # what this process has read: stamps of the files -> hash of their content


def _stamps(files: Sequence[tuple[str, Path]]) -> list[list[int]]:
    stats = [file.stat() for _, file in files]
    return [[stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for stat in stats]


def _from_note(note: Path, key: str) -> str | None:
    """The hash that an earlier process has noted, None if there is none or it is damaged."""
    with suppress(OSError, ValueError):
        known, seal = note.read_text().split()
        return known if seal == _seal(key, known) else None
    return None


def _seal(key: str, known: str) -> str:
    return hashlib.sha256(f"{key} {known}".encode()).hexdigest()[:16]
