"""load_runs(): many run directories as one tidy table, a row per run."""

import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from newllm.analysis.settings import canonical, flatten
from newllm.config.identity import relevant_nodes, stored_signature
from newllm.errors import ConfigError
from newllm.labels import in_words
from newllm.store.run_directory import GENERATED_NAME, RunDirectory, evaluated_run, metrics_of
from newllm.store.run_names import Paths, find_runs, located
from newllm.suggest import did_you_mean

FIXED = (
    "run", "path", "sweep", "evaluated_from", "state", "signature", "seed", "not_finite", "overrides", "config",
    "scored", "error"
)  # fmt: skip
WIDE = ("not_finite", "overrides", "config", "scored", "error")  # columns of FIXED that come last
SCORED = "scored/"  # + evaluator, or evaluator/part: names in results.json of fingerprints of the scored tokens
NEEDED = ("choices", "data", "model", "pos_encoding", "attention", "optim", "trainer", "eval")


def load_runs(path: Paths, evaluations: bool = False) -> pd.DataFrame:
    """One row per run directory at or below `path` (a folder, or a list of folders or runs). Reads no checkpoint.

    ::

        newllm.load_runs("outputs/sweeps").groupby("pos_encoding")["val/ppl"].agg(["mean", "std", "count"])

    A row holds what was measured under the settings of training, also by evaluations that came later. evaluations: add
    a row for each evaluation under other settings (in the run's folder evaluations/), with those settings in
    ``config`` (and what they were in training, under ``evaluated``), what they are in the column ``evaluated``, and the
    name of the run in ``evaluated_from``, which is missing in the rows of runs. Its ``signature`` is not that of a run
    trained under such settings. Without it such a folder is a row only if `path` names it but not its run.

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
    folders = find_runs([located(one) for one in ([path] if isinstance(path, str | os.PathLike) else path)])
    if not evaluations:
        runs = {folder.absolute() for folder in folders}
        folders = [folder for folder in folders if evaluated_run(folder) not in runs]
    rows = [_read_run(RunDirectory(folder)) for folder in folders]
    more = dict.fromkeys(name for row in rows for name in row if name not in FIXED)
    names = [*(name for name in FIXED if name not in WIDE), *sorted(more, key=lambda name: "/" in name), *WIDE]
    columns: dict[str, Any] = {
        name: [row.get(name, float("nan") if "/" in name else None) for row in rows] for name in names
    }
    columns["seed"] = pd.array(columns["seed"], dtype="Int64")
    return pd.DataFrame(columns | {name: pd.Series(columns[name], dtype=object) for name in WIDE})


def metric_names(frame: pd.DataFrame) -> list[str]:
    """The columns that hold metrics."""
    return [str(name) for name in frame if "/" in str(name)]


def known_metrics(frame: pd.DataFrame) -> list[str]:
    """The metrics of which a finished run has a finite number."""
    return [name for name in metric_names(frame) if frame[name].notna().any()]


def require_metric(frame: pd.DataFrame, name: str) -> None:
    """Raises ConfigError if no finished run has a finite number of the metric."""
    known = known_metrics(frame)
    if name not in known and name in frame:
        raise ConfigError(f"no finished run has a finite {name}.")
    if name not in known:
        raise ConfigError(f"{name} is not a metric of these runs; {did_you_mean(name, known)}.")


def states_in_words(frame: pd.DataFrame) -> str:
    """``3 done, 1 failed``."""
    return ", ".join(f"{count} {state}" for state, count in frame["state"].value_counts().items())


def _read_run(run: RunDirectory) -> dict[str, Any]:
    """The row of a run."""
    folder = run.path
    origin = evaluated_run(folder) if folder.parent.name == "evaluations" else None
    sweep = folder.parent.parent.parent if origin else folder.parent
    row: dict[str, Any] = dict.fromkeys(FIXED)
    row |= {"run": folder.name, "path": str(folder), "sweep": str(sweep), "overrides": [], "config": {}}
    row |= {"scored": {}, "not_finite": (), "evaluated_from": origin.name if origin else None}
    try:
        config = _read_config(run)
        row |= {"config": config, "overrides": [str(line) for line in config.get("overrides") or []]}
        row |= {"seed": config["trainer"]["seed"], "signature": _signature(folder, config)}
        if origin:
            config = _with_settings_of_training(config, _read_config(RunDirectory(origin)))
            row |= {"config": config, "signature": stored_signature(config)}
        status = run.status()
        if not origin:
            run.require_same_run(run.status_file, status.get("signature"), row["signature"])
        if run.evaluations_file.name in status.get("files", {}) or os.path.lexists(run.evaluations_file):
            row["config"] = config = _with_later_evaluators(run, config)
        named: dict[str, Any] = {
            str(group): "+".join(map(str, choice)) if isinstance(choice, list) else choice
            for group, choice in config["choices"].items()
        }
        for name, value in config.items():
            if not isinstance(value, dict):
                named[name] = tuple(value) if isinstance(value, list) else value  # a tuple can be grouped by
        named |= in_words(status.get("labels") or {})
        row = {**named, **row}
        row |= {"state": run.observed(status), "error": status.get("error")}
        if row["state"] == "interrupted" and status["state"] == "done":
            row["error"] = run.lost_results()
        if row["state"] == "done":
            stored = run.results(status)
            row["scored"] = {name.removeprefix(SCORED): v for name, v in stored.items() if name.startswith(SCORED)}
            results = {name: float("nan") if v is None else float(v) for name, v in metrics_of(stored).items()}
            row["not_finite"] = tuple(name for name, value in results.items() if not isfinite(value))
            row = {**results, **row}
    except (ConfigError, OSError) as error:
        row |= {"state": "unreadable", "error": str(error)}
    return row


def _read_config(run: RunDirectory) -> dict[str, Any]:
    """The stored configuration. Raises ConfigError if another version of newllm wrote it."""
    config = run.config()
    missing = [name for name in NEEDED if not isinstance(config.get(name), dict)]
    if not missing and type(config["trainer"].get("seed")) is not int:
        missing = ["trainer.seed"]
    if missing:
        raise ConfigError(f"config.yaml has no {', '.join(missing)}: another version of newllm wrote it")
    return {str(key): value for key, value in config.items()}


def _with_settings_of_training(config: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """The configuration of an evaluation with what it changes, as it was in training: two models that are evaluated
    alike may else have equal configurations."""
    now, then = (flatten({**relevant_nodes(one), "eval": None}) for one in (config, trained))
    changed = [key for key in {**then, **now} if canonical(then.get(key)) != canonical(now.get(key))]
    return {**config, "evaluated": {f"{key} in training": then.get(key) for key in changed}}


def _with_later_evaluators(run: RunDirectory, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the evaluators that evaluations after the run have added."""
    later = {name: options for line in run.evaluated() for name, options in line["eval"].items()}
    evaluators = {**later, **config["eval"]}
    names = list(dict.fromkeys([*(config["choices"].get("eval") or []), *evaluators]))
    return {**config, "eval": evaluators, "choices": {**config["choices"], "eval": names}}


def _signature(folder: Path, config: Mapping[str, Any]) -> str:
    """The signature of the configuration.

    Raises ConfigError if newllm chose the folder's name and the signature in it is another one.
    """
    mark = stored_signature(config)
    named = GENERATED_NAME.search(folder.name)
    if named and mark != named[1]:
        raise ConfigError("the configuration does not have the folder's signature: another version of newllm wrote it")
    return mark
