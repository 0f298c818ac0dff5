"""load_runs(): many run directories as one tidy table, a row per run."""

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from newllm.config.identity import signature
from newllm.errors import ConfigError
from newllm.labels import in_words
from newllm.store.run_directory import LOADER, Paths, RunDirectory, evaluated_run, find_runs
from newllm.store.run_names import located

FIXED = (
    "run", "path", "sweep", "evaluated_from", "state", "signature", "seed", "not_finite", "overrides", "config",
    "scored", "error"
)  # fmt: skip
WIDE = ("not_finite", "overrides", "config", "scored", "error")  # columns of FIXED that come last
SCORED = "scored/"  # + evaluator, or evaluator/part: names in results.json of fingerprints of the scored tokens
NEEDED = ("choices", "data", "model", "pos_encoding", "attention", "optim", "trainer", "eval")

_TOP_LEVEL = re.compile(r"^(?=[^\s#-])", re.MULTILINE)  # where a key of the outermost mapping begins
_GENERATED_NAME = re.compile(r"-s\d+-([0-9a-f]{8})$")  # <slug>-s<seed>-<signature>

Parse = Callable[[str], Any]


def load_runs(path: Paths, evaluations: bool = False) -> pd.DataFrame:
    """One row per run directory at or below `path` (a folder, or a list of folders). Reads no checkpoint.

    A row holds what was measured under the settings of training, also by evaluations that came later. evaluations: add
    a row for each evaluation under other settings (in the run's folder evaluations/), with those settings in
    ``config``, what they are in the column ``evaluated``, and the name of the run in ``evaluated_from``, which is
    missing in the rows of runs. Without it such a folder is a row only if `path` names it but not its run.

    Columns: ``run`` (folder name), ``path``, ``sweep`` (the folder it is in), ``evaluated_from``, ``state``,
    ``signature``, ``seed``, ``not_finite`` (tuple of the metrics whose value is null or infinite, as in a run that
    diverged; pandas leaves nulls out of means, so compare ``count`` with ``size``), ``overrides`` (list of str),
    ``config`` (effective configuration; parts of it are shared between rows, so copy before changing one), ``scored``
    (evaluator, or evaluator/part, -> fingerprint of the tokens that it scored), ``error``; a column per group with its
    choice (a list joined by ``+``); a column per axis with its value, missing where the run does not use it; ``name``,
    ``tags`` (joined by a comma) and ``notes``, if a run has them; and a column per metric, float64, under
    its name.

    ``state`` is the observed one; runs that are not done are rows without metrics. A directory that cannot be read
    has state ``unreadable`` and the reason in ``error``, which otherwise says why a run failed.

    Raises ConfigError if `path` does not exist; a folder without runs gives an empty table.
    """
    # The runs of a sweep share most blocks of their config.yaml: each is parsed once, and kept in memory once.
    parse_yaml = cache(lambda text: yaml.load(text, Loader=LOADER))
    folders = find_runs([located(one) for one in ([path] if isinstance(path, str | os.PathLike) else path)])
    if not evaluations:
        runs = {folder.absolute() for folder in folders}
        folders = [folder for folder in folders if evaluated_run(folder) not in runs]
    rows = [_read_run(folder, parse_yaml) for folder in folders]
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


def _read_run(folder: Path, parse_yaml: Parse) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """The row of a run: fixed columns; choices and axes; metrics."""
    origin = evaluated_run(folder) if folder.parent.name == "evaluations" else None
    sweep = folder.parent.parent.parent if origin else folder.parent
    fixed: dict[str, Any] = dict.fromkeys(FIXED)
    fixed |= {"run": folder.name, "path": str(folder), "sweep": str(sweep), "overrides": [], "config": {}}
    fixed |= {"scored": {}, "not_finite": ()}
    fixed["evaluated_from"] = origin.name if origin else None
    named: dict[str, Any] = {}
    results: dict[str, float] = {}
    try:
        config = _read_config(folder, parse_yaml)
        fixed |= {"config": config, "overrides": [str(line) for line in config.get("overrides") or []]}
        fixed |= {"seed": config["trainer"]["seed"], "signature": _signature(folder, config)}
        if (folder / "evaluations.jsonl").exists():
            fixed["config"] = config = _with_later_evaluators(folder, config)
        for group, choice in config["choices"].items():
            named[str(group)] = "+".join(map(str, choice)) if isinstance(choice, list) else choice
        for name, value in config.items():
            if not isinstance(value, dict) and name not in FIXED:
                named[name] = tuple(value) if isinstance(value, list) else value  # a tuple can be grouped by
        status = _mapping(folder / "status.json", json.loads, "JSON") if (folder / "status.json").exists() else {}
        state = str(status.get("state", "queued"))
        named |= in_words(status["labels"] if isinstance(status.get("labels"), dict) else {})
        fixed["state"] = RunDirectory(folder).observed() if state == "running" else state
        fixed["error"] = status.get("error")
        if fixed["state"] == "done":
            for name, value in _mapping(folder / "results.json", json.loads, "JSON").items():
                if name.startswith(SCORED) and isinstance(value, str):
                    fixed["scored"][name.removeprefix(SCORED)] = value
                elif name.startswith(SCORED) or not isinstance(value, int | float | None):
                    expected = "a fingerprint" if name.startswith(SCORED) else "a number"
                    raise ConfigError(f"results.json has {name}={value!r}, which is not {expected}")
                else:
                    results[name] = float("nan") if value is None else float(value)  # NaN and infinity are null
            fixed["not_finite"] = tuple(name for name, value in results.items() if not isfinite(value))
    except (ConfigError, OSError, OverflowError) as error:
        fixed |= {"state": "unreadable", "error": str(error)}
        results = {}
    return fixed, named, results


def _read_config(folder: Path, parse_yaml: Parse) -> dict[str, Any]:
    """The stored configuration. Raises ConfigError if another version of newllm wrote it."""

    def parse(text: str) -> Any:
        try:  # each outermost key by itself
            blocks = [parse_yaml(block) for block in _TOP_LEVEL.split(text)]
            return {key: value for block in blocks for key, value in (block or {}).items()}
        except (yaml.YAMLError, AttributeError):  # the file has another layout
            return yaml.load(text, Loader=LOADER)

    config = _mapping(folder / "config.yaml", parse, "YAML")
    missing = [name for name in NEEDED if not isinstance(config.get(name), dict)]
    if not missing and type(config["trainer"].get("seed")) is not int:
        missing = ["trainer.seed"]
    if missing:
        raise ConfigError(f"config.yaml has no {', '.join(missing)}: another version of newllm wrote it")
    return {str(key): value for key, value in config.items()}


def _with_later_evaluators(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the evaluators that evaluations after the run have added."""

    def parse(text: str) -> dict[str, Any]:
        lines = [json.loads(line) for line in text.splitlines()]
        return {name: options for line in lines for name, options in line["eval"].items()}

    evaluators = {**_mapping(folder / "evaluations.jsonl", parse, "JSON"), **config["eval"]}
    names = list(dict.fromkeys([*(config["choices"].get("eval") or []), *evaluators]))
    return {**config, "eval": evaluators, "choices": {**config["choices"], "eval": names}}


def _signature(folder: Path, config: Mapping[str, Any]) -> str:
    """The signature of the configuration, by the content that it says its run has read; no such file is opened here.

    Raises ConfigError if newllm chose the folder's name and the signature in it is another one.
    """
    mark = signature(config, hash_of=lambda path, patterns: None)
    named = _GENERATED_NAME.search(folder.name)
    if named and mark != named[1]:
        raise ConfigError("the configuration does not have the folder's signature: another version of newllm wrote it")
    return mark


def _mapping(file: Path, parse: Parse, form: str) -> dict[Any, Any]:
    """The mapping in a file. Raises ConfigError, with the reason, if it cannot be read."""
    try:
        values = parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file.name} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file.name} is not text") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file.name} is not valid {form} ({' '.join(str(error).split())[:160]})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file.name} does not hold a mapping")
    return values
