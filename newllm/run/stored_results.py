"""Results of an evaluation after the run: compared with what stands in a directory, and added to it.

A number or table that is there is never changed: it comes out equal, or nothing at all is written.
"""

import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from newllm.config.identity import canonical, folder_name
from newllm.store.atomic import json_line, sync_folder, write_text
from newllm.store.run_directory import RunDirectory
from newllm.store.tables import Rows, as_csv, same

if TYPE_CHECKING:
    from newllm.console import Console

TRAINING = {"loss": ("val/loss", "val/ppl")}  # what training measures too, in batches of its own, by its evaluator
PATIENCE = 60.0  # seconds; others hold a finished run's directory only while they add to it


@dataclass(frozen=True)
class Found:
    """What an evaluation has found, and how: evaluators (name -> node), their metrics, their tables."""

    evaluators: dict[str, Any]
    metrics: dict[str, float]
    tables: dict[str, Rows]
    overrides: list[str]
    started: str
    environment: dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """Names of metrics and tables that are new and that came out equal; different: lines {name, stored, now}.

    kept: the like lines of numbers that training has measured by itself, which stay as they are.
    """

    new: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    different: list[dict[str, Any]] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)


def target(run: RunDirectory, said: tuple[str, ...], config: Mapping[str, Any]) -> RunDirectory:
    """Where results belong: to the run itself if nothing was said to be otherwise, else in a folder of their own.

    A folder that carries the signature is taken whatever the rest of its name.
    """
    if not said:
        return run
    name = folder_name(said, config)
    there = sorted(run.evaluations.glob(f"*-{name.rpartition('-')[2]}")) if run.evaluations.is_dir() else []
    return RunDirectory(there[0] if there else run.evaluations / name)


def earlier(directory: RunDirectory, evaluators: Mapping[str, Any]) -> dict[str, float] | None:
    """The metrics of an evaluation by the same evaluators with the same options, if one has been added before."""
    results = directory.results()
    for line in reversed(directory.evaluated()):
        if canonical(line["eval"]) == canonical(evaluators) and all(name in results for name in line["metrics"]):
            return {name: results[name] for name in line["metrics"]}
    return None


def compare(directory: RunDirectory, found: Found) -> Compared:
    """What is found with what stands in `directory`, number by number and table by table."""
    stored, compared = directory.results(), Compared()
    training = _of_training(directory)
    for name, value in found.metrics.items():
        if name not in stored:
            compared.new.append(name)
        elif stored[name] == value or (stored[name] is None and not math.isfinite(value)):
            compared.equal.append(name)
        else:
            side = compared.kept if name in training else compared.different
            side.append({"name": name, "stored": stored[name], "now": value})
    for table, rows in found.tables.items():
        name, file = f"tables/{table}.csv", directory.tables / f"{table}.csv"
        if not file.exists():
            compared.new.append(name)
        elif same(file.read_text(encoding="utf-8"), as_csv(rows)):
            compared.equal.append(name)
        else:
            compared.different.append({"name": name, "stored": "other cells", "now": "other cells"})
    return compared


def add(
    run: RunDirectory, directory: RunDirectory, config: Mapping[str, Any], found: Found, console: "Console"
) -> Compared:
    """Write what is new into `directory`, which is `run` or a folder of its evaluations (made here, of `config`).

    Under the run's lock. The console's lines go into the log. Nothing is written if anything differs.
    """
    with run.locked(PATIENCE):
        compared = compare(directory, found)
        if compared.different:
            return compared
        if directory.path == run.path or directory.config_file.exists():
            _write(directory, compared, found, console)
        else:
            _make(directory, config, compared, found, console)
    return compared


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _of_training(directory: RunDirectory) -> set[str]:
    """Metrics whose stored numbers are training's: no evaluator measured them with the run, or all found them kept."""
    if directory.trained is not directory:
        return set()
    own, later = directory.config().get("eval", {}), directory.evaluated()
    return {
        metric
        for evaluator, metrics in TRAINING.items()
        if evaluator not in own
        for metric in metrics
        if all(metric in line["kept"] for line in later if evaluator in line["eval"])
    }


def _write(directory: RunDirectory, compared: Compared, found: Found, console: "Console") -> None:
    """Tables first, so that no metric is there without its table; the line that says it is done last."""
    for table, rows in found.tables.items():
        if f"tables/{table}.csv" in compared.new:
            directory.write_table(table, rows)
    new = {name: value for name, value in found.metrics.items() if name in compared.new}
    if new:
        directory.write_results({**directory.results(), **new})
    line = {
        "time": now(),
        "overrides": found.overrides,
        "eval": found.evaluators,
        "metrics": [*found.metrics],
        "new": len(compared.new),
        "equal": len(compared.equal),
        "kept": [line["name"] for line in compared.kept],
        "environment": found.environment,
    }
    file = directory.evaluations_file
    lines = file.read_text(encoding="utf-8") if file.exists() else ""
    write_text(file, lines + json_line(line))
    console.open_log(directory.log_file)
    console.close_log()


def _make(
    directory: RunDirectory, config: Mapping[str, Any], compared: Compared, found: Found, console: "Console"
) -> None:
    """The folder of an evaluation, whole or not at all."""
    folder = directory.path.parent
    folder.mkdir(exist_ok=True)
    for left in folder.glob(".*.building"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    rough = RunDirectory(folder / f".{directory.path.name}.building")
    rough.path.mkdir()
    try:
        rough.write_config(config)
        _write(rough, compared, found, console)
        rough.update_status(
            state="done",
            attempt=1,
            host=platform.node(),
            pid=os.getpid(),
            started=found.started,
            finished=now(),
            error=None,
        )
        sync_folder(rough.path)
        rough.path.rename(directory.path)
        sync_folder(folder)
    finally:
        shutil.rmtree(rough.path, ignore_errors=True)
