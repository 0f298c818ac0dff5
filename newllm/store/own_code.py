"""Code outside newllm that a run or a launch has used: its user need not name it again.

A run and a launch record the packages that they use, and their folders, with a seal by the key in the user's
configuration folder (~/.config/newllm/key). A record of somebody else has no such seal, so its packages must be named.
"""

import hmac
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from newllm.store.code_digest import is_unchanged
from newllm.store.run_directory import RunDirectory
from newllm.trust import import_from, name_packages_of, packages_of, use_folder


def code_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """For environment.json: the packages outside newllm that a configuration names; {} if it names none."""
    packages = packages_of({key: value for key, value in config.items() if key != "overrides"})
    return sealed({}, packages, config) if packages else {}


def sealed(about: Mapping[str, Any], packages: Iterable[str], *content: Any) -> dict[str, Any]:
    """`about` with `code`, package -> folder, and `seal`, which covers `code` and `content`."""
    folders = {package: folder for package in packages if (folder := _folder_of(package))}
    return {**about, "code": folders, "seal": _seal(folders, *content)}


def use_code_of(record: Mapping[str, Any], *content: Any) -> bool:
    """Trust the packages of a sealed record and make them importable; returns False if the seal is not the user's."""
    folders = record.get("code")
    seal = _seal(folders, *content)
    if seal is None or not hmac.compare_digest(seal.encode(), str(record.get("seal")).encode()):
        return False
    for package, folder in dict(folders or {}).items():
        copy = Path(folder).parent  # of a sweep: .sweep/code/HASH/user
        if copy.parent.name != "code":
            import_from(Path(folder), [package])
        elif is_unchanged(copy):
            use_folder(Path(folder))  # a sweep that is launched again copies it again
        else:
            continue
        name_packages_of({"_target_": f"{package}.x"})
    return True


def use_code_of_run(directory: RunDirectory) -> None:
    """Trust the packages that a run uses and make them importable, if it is the user's own."""
    record = directory.environment()
    if record.get("code"):
        use_code_of(record, directory.config())


def _folder_of(package: str) -> str | None:
    """The folder that a package would be imported from."""
    try:
        spec = find_spec(package.partition(".")[0])
    except (ImportError, ValueError):
        return None
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        return None
    place = Path(spec.origin) if spec.origin else Path(next(iter(spec.submodule_search_locations or [])), "x")
    return str(place.parents[1] if spec.submodule_search_locations is not None else place.parent)


def _seal(*content: Any) -> str | None:
    """Of the content, by the user's key; None if there is no place for a key."""
    key = _key()
    return hmac.digest(key, json.dumps(content, sort_keys=True, default=str).encode(), "sha256").hex() if key else None


def _key() -> bytes | None:
    try:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "newllm"
        file = folder / "key"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            new = folder / f".key.{os.getpid()}"
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(32))
            with suppress(FileExistsError):  # of another process
                os.link(new, file)
            new.unlink()
        return file.read_bytes() if file.stat().st_uid == os.getuid() else None
    except (OSError, RuntimeError):
        return None
