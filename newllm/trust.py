"""Whose code a configuration may name: newllm's, and that of packages which the user has named.

A `_target_` is imported only if it is in one of them. A package is named in the environment variable NEWLLM_TRUST, or
by whoever types a command: in its overrides, or in the YAML files of its --config-dir. The configuration of a run
directory names none, since another person may have written it.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import invalidate_caches
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError

VARIABLE = "NEWLLM_TRUST"  # packages, separated by commas; also how processes that a command starts learn of them
_OWN = ("newllm", "hydra_plugins.newllm_launcher")
_ROOTS = ("newllm", "hydra_plugins")
_NAMES = ("_target_", "frequencies", "family", "scaling", "kind")  # options that may name code


def require_trusted(name: str) -> None:
    """Raises ConfigError if the dotted path `name` is not in newllm or in a package that the user has named."""
    if not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise ConfigError(f"{name!r} is not the dotted path of a class; expected one such as newllm.position.Rope.")
    if not _is_in(name, (*_OWN, *named())):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names:
            raise ConfigError(
                f"{name}, which this configuration names, is not imported: {package} is a module of Python, and no "
                "configuration of newllm names one; do not use this configuration."
            )
        raise ConfigError(
            f"{name}, which this configuration names, is not imported, since it is not part of newllm and you have not "
            f"named its package; if you trust that code, set {VARIABLE}={package} or type --config-dir FOLDER."
        )


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def named() -> list[str]:
    """The packages that the user has named."""
    return [package for text in os.environ.get(VARIABLE, "").split(",") if (package := text.strip())]


def name_packages_of(content: Any) -> None:
    """Name the packages of all targets in `content`, which the user of this process has typed or chosen."""
    found = [package for package in packages_of(content) if package not in named()]
    if found:
        os.environ[VARIABLE] = ",".join([*named(), *found])


def packages_of(content: Any) -> list[str]:
    """The packages outside newllm that targets in `content` are in."""
    return sorted({name.partition(".")[0] for name in _names(content) if not _is_in(name, _OWN)})


import_folders: list[str] = []  # that this process has added to sys.path; a sweep's runs need them too
_config_dirs: list[Path] = []  # the --config-dir of the latest command or call, if it has one
_homes: dict[str, Path] = {}  # module -> the folder that this process imports it from
_latest: dict[str, dict[str, bytes]] = {}  # module -> its files at the latest call of `import_from`


def use_folder(folder: Path | None, contents: Iterable[Any] = ()) -> None:
    """Make the modules in the user's --config-dir importable, and name them and the packages of its YAML files.

    folder: None if the user gives none; modules of an earlier one stay importable, since its configurations may be
    built later. contents: those of the YAML files. Raises ConfigError for a module that would hide another.
    """
    _config_dirs.clear()
    if folder is None:
        return
    for content in contents:
        name_packages_of(content)
    modules = modules_in(folder)
    import_from(folder, modules)
    _config_dirs.append(folder)
    for name in modules:
        name_packages_of({"_target_": f"{name}.x"})


def code_folder() -> Path | None:
    """The user's --config-dir if it holds Python code."""
    return next((folder for folder in _config_dirs if modules_in(folder)), None)


def where_looked() -> str:
    """Where modules are looked for, in words."""
    return "".join(f" in {folder} (--config-dir) or" for folder in _config_dirs) + " among the installed packages"


def modules_in(folder: Path) -> list[str]:
    """The modules at the top of a folder, and the packages: folders with modules, or that the user has named."""
    found = {file.stem for file in folder.glob("*.py")} | {file.parent.name for file in folder.glob("*/*.py")}
    found |= {name for name in named() if (folder / name).is_dir()}
    return sorted(name for name in found if name.isidentifier())


def import_from(folder: Path, modules: Iterable[str]) -> None:
    """Make these modules of a folder importable. Raises ConfigError for one that would hide another, or that would be
    hidden by one of the same name which this process uses already."""
    modules = list(modules)
    installed = [place for place in sys.path if place.endswith("-packages") and place != str(folder)]
    for name in modules:
        if name in (*sys.stdlib_module_names, *_ROOTS) or PathFinder.find_spec(name, installed):
            raise ConfigError(f"{folder / name}: {name} is the name of another module; rename this one.")
        other = _homes.setdefault(name, folder)
        both = {*modules_in(folder)}.intersection(modules_in(other)) if other != folder else ()
        if differ := [one for one in both if _code(other, one) != _code(folder, one)]:
            raise ConfigError(
                f"{other} and {folder} hold different code called {min(differ)}, and a process can import only one; "
                "use them in commands of their own (a run finds its own code without --config-dir)."
            )
    if modules and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        import_folders.append(str(folder))
    if modules and str(folder) in import_folders:
        sys.path.sort(key=lambda place: place != str(folder))  # before the copies of this code in sweeps
        for name in modules:
            _forget_if_edited(name, _code(folder, name))


def _forget_if_edited(name: str, code: dict[str, bytes]) -> None:
    """Let the next import read a module again if it was edited, as between two cells of a notebook."""
    if _latest.setdefault(name, code) != code:
        _latest[name] = code
        for loaded in [module for module in sys.modules if _is_in(module, [name])]:
            del sys.modules[loaded]
        invalidate_caches()


def _code(folder: Path, name: str) -> dict[str, bytes]:
    """The Python files of a module or package, by their paths in the folder."""
    files = [*folder.glob(f"{name}.py"), *folder.glob(f"{name}/**/*.py")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def _names(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key in _NAMES and isinstance(value, str):
                if "." in value and all(part.isidentifier() for part in value.split(".")):
                    yield value
            else:
                yield from _names(value)
    elif isinstance(content, list | tuple):
        for item in content:
            yield from _names(item)
