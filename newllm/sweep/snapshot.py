"""A copy of the code that a sweep was planned with: runs that start later are not changed by later edits."""

import hashlib
import os
import shutil
from pathlib import Path

import newllm
from newllm.config.catalog import shipped
from newllm.store.environment import CODE, git_state
from newllm.store.intact import write_json

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def python_path(sweep: Path) -> str:
    """PYTHONPATH for the runs of a sweep: the snapshot, then the current folder, which may hold a user's classes.

    To be used with ``python -P``, which keeps the current folder from coming first.
    """
    path = [str(snapshot(sweep)), os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.pathsep.join(dict.fromkeys(path))


def snapshot(sweep: Path) -> Path:
    """The folder with a copy of the package as it is now, and of conf/; the same code is copied once."""
    package = Path(newllm.__file__).resolve().parent
    digest = _digest(package)
    folder = sweep.resolve() / ".sweep" / "code" / digest
    if folder.is_dir():
        return folder
    copy = folder.with_name(f".{digest}.{os.getpid()}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(package, copy / "newllm", ignore=_IGNORED)
    if not (copy / "newllm" / "conf").is_dir():
        shutil.copytree(shipped(), copy / "conf", ignore=_IGNORED)
    if not (package / CODE).exists():  # the file says where the code was copied from; a copy of a copy keeps it
        write_json(copy / "newllm" / CODE, {**(git_state(package) or {}), "source_sha256": digest})
    try:
        copy.rename(folder)
    except OSError:  # another launcher was faster
        shutil.rmtree(copy, ignore_errors=True)
    return folder


def _digest(package: Path) -> str:
    """16 hex digits of names and contents of all files of the package and of conf/."""
    sha = hashlib.sha256()
    for root in dict.fromkeys((package, shipped())):
        for file in sorted(root.rglob("*")):
            hidden = any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(root).parts)
            if file.is_file() and not hidden and file.suffix != ".pyc" and file.name != CODE:
                sha.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return sha.hexdigest()[:16]
