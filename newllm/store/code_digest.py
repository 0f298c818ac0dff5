"""The hash that names a copy of the code. Imports only the standard library and nothing of newllm: a SLURM job executes
this text as a script, with the copy's folder as its argument, before it imports anything from the copy."""

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

COMPILED = "__pycache__"
ABOUT = "newllm/_code.json"  # of a copy: where it was made from; not part of its hash


def digest(files: Mapping[str, Path]) -> str:
    """16 hex digits of names and contents. files: name in the copy -> file."""
    sha = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        sha.update(f"{name}\0{len(content)}\0".encode() + content)
    return sha.hexdigest()[:16]


def files_in(copy: Path) -> dict[str, Path]:
    """All files of a copy by name, also hidden ones; a link has a name that no file has."""
    found = {}
    for folder, folders, names in os.walk(copy):
        for name in [*names, *folders]:
            path = Path(folder, name)
            if path.is_symlink():
                found[f"{path}//link"] = Path(os.devnull)
            elif name in names:
                found[path.relative_to(copy).as_posix()] = path
        folders[:] = [inner for inner in folders if inner != COMPILED]
    return {name: path for name, path in found.items() if name != ABOUT}


def is_unchanged(copy: Path) -> bool:
    """Whether a copy still has the content that its name says.

    Deletes its compiled files first, since Python would not compare them with the source. Other jobs that execute the
    copy may write them again meanwhile.
    """
    try:
        for folder in list(copy.rglob(COMPILED)):
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)
        return not copy.is_symlink() and digest(files_in(copy)) == copy.name
    except OSError:
        return False


if __name__ == "__main__" and not is_unchanged(Path(sys.argv[1])):
    sys.exit(f"newllm: {sys.argv[1]} is not executed, since it was changed after the sweep was launched")
