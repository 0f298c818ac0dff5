"""load_runs(): many run directories as one tidy table, a row per run."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from newllm.config.identity import signature
from newllm.errors import ConfigError
from newllm.store.run_directory import LOADER, RunDirectory, evaluated_run

if TYPE_CHECKING:
    import pandas as pd

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

FIXED = ("run", "path", "sweep", "evaluated_from", "state", "signature", "seed", "overrides", "config", "error")
OBJECTS = ("overrides", "config", "error")  # columns of FIXED that come last, since they are wide
NEEDED = ("choices", "data", "model", "pos_encoding", "attention", "optim", "trainer", "eval")

_TOP_LEVEL = re.compile(r"^(?=[^\s#-])", re.MULTILINE)  # where a key of the outermost mapping begins
_GENERATED_NAME = re.compile(r"-s\d+-([0-9a-f]{8})$")  # <slug>-s<seed>-<signature>


class _Unreadable(Exception):
    """A file of the run that does not hold what it should; the text says which, and what is wrong with it."""


def load_runs(path: Paths) -> "pd.DataFrame":
    """One row per run directory at or below `path` (a folder, or a list of folders). Reads no checkpoint.

    An evaluation of a run under other settings (in the run's folder evaluations/) is a row as well: with those settings
    in ``config``, what they are in the column ``evaluated``, and in ``evaluated_from`` the name of the run, which is
    missing in the rows of runs. Evaluations that only add metrics add them to the run's own row.

    Columns: ``run`` (folder name), ``path``, ``sweep`` (the folder it is in), ``evaluated_from``, ``state``,
    ``signature``, ``seed``, ``overrides`` (list of str), ``config`` (effective configuration; parts of it are shared
    between rows, so copy before changing one), ``error``; a column per group with its choice (a list joined by ``+``);
    a column per axis with its value, missing where the run does not use it; and a column per metric, float64, under
    its name.

    ``state`` is the observed one; runs that are not done are rows without metrics. A directory that cannot be read
    has state ``unreadable`` and the reason in ``error``, which otherwise says why a run failed.

    Raises ConfigError if `path` does not exist; a folder without runs gives an empty table.
    """
    import pandas as pd

    read = _Reader()
    rows = [read.row(folder) for folder in find_runs(path)]
    metrics = list(dict.fromkeys(name for _, _, results in rows for name in results))
    named = list(dict.fromkeys(name for _, named, _ in rows for name in named if name not in FIXED))
    columns: dict[str, Any] = {name: [fixed[name] for fixed, _, _ in rows] for name in FIXED if name not in OBJECTS}
    columns["seed"] = pd.array(columns["seed"], dtype="Int64")
    columns |= {name: [row.get(name) for _, row, _ in rows] for name in named}
    nan = float("nan")
    columns |= {name: [results.get(name, nan) for *_, results in rows] for name in metrics}
    columns |= {name: pd.Series([fixed[name] for fixed, _, _ in rows], dtype=object) for name in OBJECTS}
    return pd.DataFrame(columns)


def find_runs(path: Paths) -> list[Path]:
    """The run directories (folders with a config.yaml) at or below `path`, in order of name, each once; after each run
    the folders of its evaluations.

    Nothing else in run directories is searched, nor folders whose name begins with a dot. ConfigError for a path that
    does not exist.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    found: dict[Path, Path] = {}
    for root in map(Path, paths):
        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder; expected a run directory or a folder of runs, as outputs/runs")
        real = root.resolve()
        for folder in _walk(root):  # which follows no links, so only what leads to `root` is to be resolved
            found.setdefault(real / folder.relative_to(root), folder)
    return list(found.values())


def read_yaml(path: Path) -> Any:
    """A YAML file as plain data, by the fast loader where there is one."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        if "config.yaml" in files:
            yield Path(folder)
            if "evaluations" in folders:
                inside = sorted(Path(folder, "evaluations").glob("[!.]*/config.yaml"))
                yield from (file.parent for file in inside)
            folders.clear()
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))


class _Reader:
    """Reads run directories. Remembers the parts of their config.yaml, of which the runs of a sweep share most."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[Any, Any]] = {}
        self._evaluators: dict[str, dict[str, Any]] = {}

    def row(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
        """Fixed columns, choices and axes, metrics."""
        fixed: dict[str, Any] = dict.fromkeys(FIXED)
        origin = evaluated_run(folder) if folder.parent.name == "evaluations" else None
        sweep = folder.parent.parent.parent if origin else folder.parent
        fixed |= {"run": folder.name, "path": str(folder), "sweep": str(sweep), "overrides": [], "config": {}}
        fixed["evaluated_from"] = origin.name if origin else None
        results: dict[str, float] = {}
        named: dict[str, Any] = {}
        try:
            config = self._config(folder)
            fixed |= {"config": config, "overrides": [str(line) for line in config.get("overrides") or []]}
            fixed["seed"] = config["trainer"]["seed"]
            fixed["signature"] = _signature(folder, config)
            fixed["config"] = config = self._with_later_evaluators(folder, config)
            named = {**_choices(config), **_axes(config)}
            status = _json(folder / "status.json", required=False)
            fixed["state"], fixed["error"] = _state(folder, status), status.get("error")
            if fixed["state"] == "done":
                results = _numbers(folder / "results.json")
        except (_Unreadable, ConfigError, OSError, OverflowError) as error:
            fixed |= {"state": "unreadable", "error": str(error)}
        return fixed, named, results

    def _with_later_evaluators(self, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration with the evaluators that evaluations after the run have added."""
        file = folder / "evaluations.jsonl"
        if not file.exists():
            return config
        added: dict[str, Any] = {}
        for line in _text(file).splitlines():
            try:
                added |= json.loads(line)["eval"]
            except (ValueError, KeyError, TypeError) as error:
                raise _Unreadable(f"evaluations.jsonl has a line that is none ({_first_line(error)})") from None
        whole = {**added, **config["eval"]}
        mark = json.dumps(whole, sort_keys=True)
        names = list(dict.fromkeys([*(config["choices"].get("eval") or []), *whole]))
        choices = {**config["choices"], "eval": names}
        return {**config, "eval": self._evaluators.setdefault(mark, whole), "choices": choices}

    def _config(self, folder: Path) -> dict[str, Any]:
        text = _text(folder / "config.yaml")
        try:
            config = self._joined(text)
            if config is None:
                config = yaml.load(text, Loader=LOADER)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise _Unreadable(f"config.yaml is no YAML ({_first_line(error)})") from None
        if not isinstance(config, dict):
            raise _Unreadable("config.yaml holds no configuration")
        missing = [name for name in NEEDED if not isinstance(config.get(name), dict)]
        if not missing and type(config["trainer"].get("seed")) is not int:
            missing = ["trainer.seed"]
        if missing:
            raise _Unreadable(f"config.yaml has no {', '.join(missing)}: another version of newllm wrote it")
        return {str(key): value for key, value in config.items()}

    def _joined(self, text: str) -> dict[Any, Any] | None:
        """The configuration from its outermost keys, each of which is parsed once for all runs; None where the
        file is not laid out in blocks."""
        config: dict[Any, Any] = {}
        for block in _TOP_LEVEL.split(text):
            if block not in self._parts:
                try:
                    part = yaml.load(block, Loader=LOADER)
                except yaml.YAMLError:
                    return None
                if part is not None and not isinstance(part, dict):
                    return None
                self._parts[block] = part or {}
            config |= self._parts[block]
        return config


def _choices(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        str(group): "+".join(map(str, choice)) if isinstance(choice, list) else choice
        for group, choice in config["choices"].items()
    }


def _axes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The root values that are neither nodes nor records; a list as a tuple, which can be grouped by."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.items()
        if not isinstance(value, dict) and name not in FIXED and name != "choices"
    }


def _signature(folder: Path, config: Mapping[str, Any]) -> str:
    """From the name where newllm chose it: there it holds also where the run's own text files are out of reach.

    Where it depends on no file, it has to be that of the configuration.
    """
    named = _GENERATED_NAME.search(folder.name)
    if not named:
        return signature(config)
    local = config["data"].get("path") is not None or config["data"].get("tokenizer") != "auto"
    if not local and signature(config) != named[1]:
        raise _Unreadable("the configuration does not have the folder's signature: another version of newllm made it")
    return named[1]


def _state(folder: Path, status: Mapping[str, Any]) -> str:
    state = status.get("state", "queued")
    return RunDirectory(folder).observed() if state == "running" else str(state)


def _numbers(path: Path) -> dict[str, float]:
    values = _json(path, required=True)
    results = {}
    for name, value in values.items():
        if value is None:  # NaN and infinity are written as null
            results[name] = float("nan")
        elif isinstance(value, int | float):
            results[name] = float(value)
        else:
            raise _Unreadable(f"results.json has {name}={value!r}, which is no number")
    return results


def _json(path: Path, required: bool) -> dict[str, Any]:
    if not required and not path.exists():
        return {}
    text = _text(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"{path.name} is no JSON ({_first_line(error)})") from None
    if not isinstance(values, dict):
        raise _Unreadable(f"{path.name} holds no mapping")
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _Unreadable(f"{path.name} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise _Unreadable(f"{path.name} is no text") from None


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
