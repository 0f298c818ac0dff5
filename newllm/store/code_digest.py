"""The hash that names a copy of the code. Imports only the standard library and nothing of newllm: a SLURM job executes
this text as a script, with the copy's folder as its argument, before it imports anything from the copy."""

import hashlib
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


def is_unchanged(copy: Path) -> bool:
    """Whether a copy still has the content that its name says, and no links.

    Deletes its compiled files first, since Python would not compare them with the source. Other jobs that execute the
    copy may write them again meanwhile.
    """
    try:
        for folder in list(copy.rglob(COMPILED)):
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)
        paths = [copy, *copy.rglob("*")]
        files = {path.relative_to(copy).as_posix(): path for path in paths if path.is_file()}
        files = {name: path for name, path in files.items() if name != ABOUT and COMPILED not in Path(name).parts}
        return not any(path.is_symlink() for path in paths) and digest(files) == copy.name
    except OSError:
        return False


if __name__ == "__main__" and not is_unchanged(Path(sys.argv[1])):
    sys.exit(f"newllm: {sys.argv[1]} is not executed, since it was changed after the sweep was launched")
