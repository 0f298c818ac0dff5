"""A copy of the code that a sweep was planned with: runs that start later are not changed by later edits."""

import os
import shutil
from pathlib import Path

from newllm.config.catalog import shipped
from newllm.errors import ConfigError
from newllm.store.code_digest import digest, is_unchanged
from newllm.store.environment import CODE, git_state
from newllm.store.intact import write_json
from newllm.trust import code_folder, import_folders, modules_in

_USER = "user"  # folder of the copy with the Python files of --config-dir


def python_path(sweep: Path) -> str:
    """PYTHONPATH for the runs of a sweep: the snapshot, then the current folder, which may hold a user's classes.

    To be used with ``python -P``, which keeps the current folder from coming first.
    """
    copy = snapshot(sweep)
    users = [str(copy / _USER)] if (copy / _USER).is_dir() else []
    path = [str(copy), *users, os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *import_folders]
    return os.pathsep.join(dict.fromkeys(filter(None, path)))


def snapshot(sweep: Path) -> Path:
    """The folder with a copy of the package as it is now, of conf/, and of the Python files in --config-dir.

    The same code is copied once. Raises ConfigError if the copy has been changed since.
    """
    package = Path(__file__).resolve().parents[1]
    files = _files(package)
    name = digest(files)
    folder = sweep.resolve() / ".sweep" / "code" / name
    if folder.exists():
        if not is_unchanged(folder):
            raise ConfigError(
                f"{folder} is not executed, since it is no longer the code that was copied there; delete that folder "
                "and type the same command, which copies the code again."
            )
        return folder
    copy = folder.with_name(f".{name}.{os.getpid()}")
    shutil.rmtree(copy, ignore_errors=True)
    for inner, file in files.items():
        (copy / inner).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy / inner)
    # The file says where the code was copied from; a copy of a copy keeps it.
    about = copy / "newllm" / CODE
    if (package / CODE).exists():
        shutil.copyfile(package / CODE, about)
    else:
        write_json(about, {**(git_state(package) or {}), "source_sha256": name})
    try:
        copy.rename(folder)
    except OSError:  # another launcher was faster
        shutil.rmtree(copy, ignore_errors=True)
    return folder


def _files(package: Path) -> dict[str, Path]:
    """Name in a copy -> file, of the package, conf/ and the user's code."""
    conf = {} if shipped().is_relative_to(package) else _inside(shipped(), "conf")
    user = code_folder()
    return {**_inside(package, "newllm"), **conf, **(_users(user) if user else {})}


def _inside(folder: Path, name: str) -> dict[str, Path]:
    """The files below `folder`, without hidden and compiled ones; their names begin with `name`."""
    found = {}
    for file in folder.rglob("*"):
        inner = file.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inner.parts)
        if file.is_file() and not hidden and file.suffix != ".pyc" and inner != Path(CODE):
            found[f"{name}/{inner.as_posix()}"] = file
    return found


def _users(folder: Path) -> dict[str, Path]:
    """The modules and packages at the top of the user's folder, with the packages' other files."""
    found = {f"{_USER}/{file.name}": file for file in folder.glob("*.py")}
    for package in (folder / name for name in modules_in(folder)):
        found |= _inside(package, f"{_USER}/{package.name}")
    return found
