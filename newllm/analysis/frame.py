"""load_runs(): many run directories as one tidy table, a row per run."""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from newllm.config.identity import signature
from newllm.errors import ConfigError
from newllm.store.run_directory import LOADER, Paths, RunDirectory, evaluated_run, find_runs

FIXED = ("run", "path", "sweep", "evaluated_from", "state", "signature", "seed", "overrides", "config", "error")
WIDE = ("overrides", "config", "error")  # columns of FIXED that come last
NEEDED = ("choices", "data", "model", "pos_encoding", "attention", "optim", "trainer", "eval")

_TOP_LEVEL = re.compile(r"^(?=[^\s#-])", re.MULTILINE)  # where a key of the outermost mapping begins
_GENERATED_NAME = re.compile(r"-s\d+-([0-9a-f]{8})$")  # <slug>-s<seed>-<signature>

Parse = Callable[[str], Any]


def load_runs(path: Paths) -> pd.DataFrame:
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
    # The runs of a sweep share most blocks of their config.yaml: each is parsed once, and kept in memory once.
    parse = cache(lambda text: yaml.load(text, Loader=LOADER))
    rows = [_row(folder, parse) for folder in find_runs(path)]
    metrics = list(dict.fromkeys(name for _, _, results in rows for name in results))
    named = list(dict.fromkeys(name for _, named, _ in rows for name in named if name not in FIXED))
    columns: dict[str, Any] = {name: [fixed[name] for fixed, _, _ in rows] for name in FIXED if name not in WIDE}
    columns["seed"] = pd.array(columns["seed"], dtype="Int64")
    columns |= {name: [row.get(name) for _, row, _ in rows] for name in named}
    columns |= {name: [results.get(name, float("nan")) for *_, results in rows] for name in metrics}
    columns |= {name: pd.Series([fixed[name] for fixed, _, _ in rows], dtype=object) for name in WIDE}
    return pd.DataFrame(columns)


def metric_names(frame: pd.DataFrame) -> list[str]:
    """The columns that hold metrics."""
    return [str(name) for name in frame if "/" in str(name)]


def _row(folder: Path, parse: Parse) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Fixed columns; choices and axes; metrics."""
    origin = evaluated_run(folder) if folder.parent.name == "evaluations" else None
    sweep = folder.parent.parent.parent if origin else folder.parent
    fixed: dict[str, Any] = dict.fromkeys(FIXED)
    fixed |= {"run": folder.name, "path": str(folder), "sweep": str(sweep), "overrides": [], "config": {}}
    fixed["evaluated_from"] = origin.name if origin else None
    named: dict[str, Any] = {}
    results: dict[str, float] = {}
    try:
        config = _config(folder, parse)
        fixed |= {"config": config, "overrides": [str(line) for line in config.get("overrides") or []]}
        fixed |= {"seed": config["trainer"]["seed"], "signature": _signature(folder, config)}
        fixed["config"] = config = _with_later_evaluators(folder, config)
        for group, choice in config["choices"].items():
            named[str(group)] = "+".join(map(str, choice)) if isinstance(choice, list) else choice
        for name, value in config.items():
            if not isinstance(value, dict) and name not in FIXED:
                named[name] = tuple(value) if isinstance(value, list) else value  # a tuple can be grouped by
        status = _json(folder / "status.json") if (folder / "status.json").exists() else {}
        state = status.get("state", "queued")
        fixed["state"] = RunDirectory(folder).observed() if state == "running" else str(state)
        fixed["error"] = status.get("error")
        if fixed["state"] == "done":
            results = _numbers(folder / "results.json")
    except (ConfigError, OSError, OverflowError) as error:
        fixed |= {"state": "unreadable", "error": str(error)}
    return fixed, named, results


def _config(folder: Path, parse: Parse) -> dict[str, Any]:
    text = _text(folder / "config.yaml")
    try:
        config = _by_blocks(text, parse) or yaml.load(text, Loader=LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"config.yaml is no YAML ({_first_line(error)})") from None
    if not isinstance(config, dict):
        raise ConfigError("config.yaml holds no configuration")
    missing = [name for name in NEEDED if not isinstance(config.get(name), dict)]
    if not missing and type(config["trainer"].get("seed")) is not int:
        missing = ["trainer.seed"]
    if missing:
        raise ConfigError(f"config.yaml has no {', '.join(missing)}: another version of newllm wrote it")
    return {str(key): value for key, value in config.items()}


def _by_blocks(text: str, parse: Parse) -> dict[Any, Any] | None:
    """The configuration from its outermost keys, each parsed by itself; None where the file has another layout."""
    config: dict[Any, Any] = {}
    for block in _TOP_LEVEL.split(text):
        try:
            part = parse(block)
        except yaml.YAMLError:
            return None
        if part is not None and not isinstance(part, dict):
            return None
        config |= part or {}
    return config


def _with_later_evaluators(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the evaluators that evaluations after the run have added."""
    if not (folder / "evaluations.jsonl").exists():
        return config
    added: dict[str, Any] = {}
    for line in _text(folder / "evaluations.jsonl").splitlines():
        try:
            added |= json.loads(line)["eval"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"evaluations.jsonl has a line that is none ({_first_line(error)})") from None
    whole = {**added, **config["eval"]}
    names = list(dict.fromkeys([*(config["choices"].get("eval") or []), *whole]))
    return {**config, "eval": whole, "choices": {**config["choices"], "eval": names}}


def _signature(folder: Path, config: Mapping[str, Any]) -> str:
    """The signature in the folder's name if newllm chose that name, which holds also where the run's own text files
    are out of reach; else that of the configuration.

    The two must agree unless the signature depends on files.
    """
    named = _GENERATED_NAME.search(folder.name)
    if not named:
        return signature(config)
    local = config["data"].get("path") is not None or config["data"].get("tokenizer") != "auto"
    if not local and signature(config) != named[1]:
        raise ConfigError("the configuration does not have the folder's signature: another version of newllm made it")
    return named[1]


def _numbers(path: Path) -> dict[str, float]:
    results = {}
    for name, value in _json(path).items():
        if value is not None and not isinstance(value, int | float):
            raise ConfigError(f"results.json has {name}={value!r}, which is no number")
        results[name] = float("nan") if value is None else float(value)  # NaN and infinity are written as null
    return results


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is no JSON ({_first_line(error)})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path.name} holds no mapping")
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name} is no text") from None


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
