"""A copy of the code that a sweep was planned with: runs that start later are not changed by later edits."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import newllm
from newllm.config.catalog import shipped
from newllm.store.atomic import write_json
from newllm.store.environment import CODE, git_state

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def snapshot(sweep: Path) -> Path:
    """The folder with the package as it is now (copied unless it is there already) and with conf/ beside it."""
    package = Path(newllm.__file__).resolve().parent
    found = package / CODE
    digest = _digest(package)
    folder = sweep.resolve() / ".sweep" / "code" / digest
    if folder.is_dir():
        return folder
    being_made = folder.with_name(f".{digest}.{os.getpid()}")
    shutil.rmtree(being_made, ignore_errors=True)
    shutil.copytree(package, being_made / "newllm", ignore=_IGNORED)
    if not (being_made / "newllm" / "conf").is_dir():
        shutil.copytree(shipped(), being_made / "conf", ignore=_IGNORED)
    if not found.exists():  # of a snapshot, a copy says what it was taken from
        write_json(being_made / "newllm" / CODE, {**(git_state(package) or {}), "source_sha256": digest})
    try:
        being_made.rename(folder)
    except OSError:  # another launcher was faster
        shutil.rmtree(being_made, ignore_errors=True)
    return folder


def environment(code: Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """`base` (os.environ) with the snapshot first on Python's path, then the current folder, for a user's classes.

    To be used with ``python -P``, which keeps the current folder from coming first.
    """
    before = dict(os.environ if base is None else base)
    path = [str(code), os.getcwd(), *filter(None, before.get("PYTHONPATH", "").split(os.pathsep))]
    return {**before, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def _digest(package: Path) -> str:
    """16 hex digits of names and contents of all files of the package and of conf/."""
    sha = hashlib.sha256()
    for root in dict.fromkeys((package, shipped())):
        for file in sorted(root.rglob("*")):
            hidden = any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(root).parts)
            if file.is_file() and not hidden and file.suffix != ".pyc" and file.name != CODE:
                sha.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return sha.hexdigest()[:16]
