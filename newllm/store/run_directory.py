"""The directory of one run: its files, its lock and its state.

config.yaml       the resolved effective configuration
environment.json  command line, code version, packages, machine of the latest attempt
status.json       state, attempt, progress, times, host, error; name, tags and notes
metrics.jsonl     a line per logged step and per epoch
results.json      metric name -> number, and scored/METRIC -> fingerprint of the tokens that the metric scored
tables/*.csv      per-layer, per-position, … results
train.log         what the console showed
tokenizer/        the tokenizer, so that the run can be read without its data
checkpoints/      last.safetensors (resumable), best.safetensors (weights)
evaluations.jsonl a line per later evaluation that added to results.json and tables/
asked.json        evaluators that a sweep has asked for since the run was done; removed when they have been called
evaluations/      a folder per evaluation with other settings: the same files without checkpoints
"""

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from newllm.errors import ConfigError, RunError
from newllm.store.atomic import is_held, json_line, write_json, write_text
from newllm.store.csv_text import Rows, as_csv

State = Literal["queued", "running", "done", "failed", "interrupted"]
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml, if available, is ten times as fast
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LOCK_PATIENCE = 0.2  # seconds; in_use() holds the lock for an instant, which must not stop a run from starting


def _inside(name: str) -> "cached_property[Path]":
    """A path in the run directory, built on first use: commands that read ten thousand runs need two of each."""
    return cached_property(lambda directory: directory.path / name)


class RunDirectory:
    """Paths and files of one run. Anyone may read; only the holder of `locked()` writes."""

    config_file = _inside("config.yaml")
    environment_file = _inside("environment.json")
    status_file = _inside("status.json")
    metrics_file = _inside("metrics.jsonl")
    results_file = _inside("results.json")
    log_file = _inside("train.log")
    tokenizer = _inside("tokenizer")
    tables = _inside("tables")
    last_checkpoint = _inside("checkpoints/last.safetensors")
    best_checkpoint = _inside("checkpoints/best.safetensors")
    evaluations_file = _inside("evaluations.jsonl")
    evaluations = _inside("evaluations")
    asked_file = _inside("asked.json")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def trained(self) -> "RunDirectory":
        """The run that has the weights: the evaluated run if this is the folder of an evaluation, else this one."""
        origin = evaluated_run(self.path)
        return self if origin is None else RunDirectory(origin)

    @contextmanager
    def locked(self, patience: float = _LOCK_PATIENCE) -> Iterator["RunDirectory"]:
        """Create the directory if needed and lock it for this process. The lock ends with the process.

        Raises ConfigError if another process holds it for longer than `patience` seconds.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the run directory {self.path} cannot be created ({error.strerror}); choose another with "
                "hydra.run.dir=…"
            ) from None
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=patience, poll_interval=0.01)
        except Timeout:
            holder = self.status() if self.status_file.exists() else {}
            who = f"process {holder['pid']} on {holder['host']}" if holder.get("pid") else "another process"
            raise ConfigError(
                f"the run directory {self.path} is in use by {who}; wait for it, or choose another directory "
                "with hydra.run.dir=…"
            ) from None
        try:
            yield self
        finally:
            lock.release()

    def config(self) -> dict[str, Any]:
        """The stored effective configuration, {} if there is none yet."""
        if not self.config_file.exists():
            return {}
        try:
            config = yaml.load(self.config_file.read_text(encoding="utf-8"), Loader=LOADER)
        except (OSError, ValueError, yaml.YAMLError) as error:
            first = str(error).splitlines()[0]
            raise ConfigError(
                f"{self.config_file} cannot be read ({first}); delete {self.path} to train afresh"
            ) from None
        if not isinstance(config, dict):
            raise ConfigError(f"{self.config_file} is not a configuration; delete {self.path} to train afresh")
        return config

    def write_config(self, config: Mapping[str, Any], durable: bool = True) -> None:
        text = yaml.dump(dict(config), Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
        write_text(self.config_file, text, durable)

    def freeze(self, config: Mapping[str, Any], labels: Mapping[str, Any] | None = None) -> None:
        """Queue the run: a worker needs only its effective configuration and the state `queued`.

        Files of an earlier attempt stay, so that the next one continues there. Not synchronised to the disk, since
        planning the sweep again restores it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_config(config, durable=False)
        labels = {**self.labels(), **(labels or {})}
        self.update_status(durable=False, state="queued", error=None, traceback=None, slurm=None, labels=labels)

    def clear(self) -> None:
        """Delete results, metrics, tables, log, checkpoints and evaluations, to train afresh. Labels stay."""
        kept: dict[str, Any] = {}
        with suppress(ConfigError):
            kept = {key: value for key, value in self.status().items() if key in ("created", "labels")}
        records = (self.results_file, self.metrics_file, self.status_file, self.environment_file, self.evaluations_file)
        for file in (*records, self.log_file, self.asked_file):
            file.unlink(missing_ok=True)
        for folder in (self.tables, self.last_checkpoint.parent, self.tokenizer, self.evaluations):
            shutil.rmtree(folder, ignore_errors=True)
        if kept:
            self.update_status(durable=False, **kept)

    def in_use(self) -> bool:
        """True if a living process holds the directory."""
        return (self.path / ".lock").exists() and is_held(self.path / ".lock")

    def observed(self) -> State:
        """The actual state: a run whose status is `running`, but that no process holds, was interrupted."""
        state = self.status().get("state", "queued")
        return "interrupted" if state == "running" and not self.in_use() else state

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        write_json(self.environment_file, dict(environment))

    def environment(self) -> dict[str, Any]:
        """The contents of environment.json, {} if there is none yet."""
        return _read_json(self.environment_file)

    def status(self) -> dict[str, Any]:
        """The contents of status.json, {} if there is none yet."""
        return _read_json(self.status_file)

    def update_status(self, durable: bool = True, **changes: Any) -> None:
        """Change these fields of status.json: state, attempt, progress, error, …; `updated` is set to now,
        and `created` when the file is first written."""
        now = datetime.now(UTC)
        status = {"created": now.isoformat(), **self.status(), **changes, "updated": now.isoformat(timespec="seconds")}
        write_json(self.status_file, status, durable)

    def labels(self) -> dict[str, Any]:
        """The name, tags and notes that the user gave the run, without those that have no value."""
        labels = self.status().get("labels")
        return dict(labels) if isinstance(labels, dict) else {}

    def label(self, labels: Mapping[str, Any]) -> None:
        """Record these labels; others that the run has stay. Raises ConfigError if the directory is not writable."""
        if {**self.labels(), **labels} == self.labels():
            return
        try:
            self.update_status(labels={**self.labels(), **labels})
        except OSError as error:
            given = ", ".join(f"{key}=" for key in labels)
            raise ConfigError(f"{self.path} is not writable ({error.strerror}), so leave {given} out.") from None

    def begin_attempt(self) -> int:
        """Record that this process has begun to work on the run; returns the attempt's number, from 1."""
        for temporary in self.path.rglob(".*.tmp"):  # of a process that was killed while it wrote
            temporary.unlink()
        attempt = int(self.status().get("attempt", 0)) + 1
        here: dict[str, Any] = {"host": platform.node(), "pid": os.getpid(), "started": _now(), "finished": None}
        self.update_status(state="running", attempt=attempt, **here, error=None, traceback=None)
        return attempt

    def end_attempt(self, state: State, error: str | None = None) -> None:
        self.update_status(state=state, error=error, finished=_now())

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json_line(values))

    def sync_metrics(self) -> int:
        """Synchronise metrics.jsonl to the disk; returns its length in bytes."""
        with self.metrics_file.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def truncate_metrics(self, length: int) -> None:
        """Keep the first `length` bytes: the steps of the lines after them will be repeated."""
        with self.metrics_file.open("ab") as file:
            if file.tell() < length:
                raise RunError(
                    f"{self.metrics_file} is shorter than its checkpoint requires; delete {self.path} to train afresh"
                )
            file.truncate(length)

    def metrics(self) -> list[dict[str, Any]]:
        return _read_lines(self.metrics_file)

    def results(self) -> dict[str, Any]:
        """The contents of results.json, metrics and fingerprints; {} before the run is done."""
        return _read_json(self.results_file)

    def write_results(self, results: Mapping[str, float | str]) -> None:
        write_json(self.results_file, dict(results))

    def is_done(self) -> bool:
        """True if the run has ended and has results."""
        return self.status().get("state") == "done" and self.results_file.exists()

    def asked(self) -> dict[str, Any]:
        """Evaluators, with their options, that a sweep has asked for since the run was done; {} if none is left."""
        return _read_json(self.asked_file)

    def ask(self, evaluators: Mapping[str, Any]) -> None:
        """Ask the next worker of this finished run to call these evaluators; {}: nothing is left to ask for."""
        if evaluators:
            write_json(self.asked_file, dict(evaluators))
        else:
            self.asked_file.unlink(missing_ok=True)

    def waits(self) -> bool:
        """True if there is work for a worker to begin: the run is queued, or done and asked for more evaluators."""
        return self.observed() == "queued" or (self.is_done() and bool(self.asked()))

    def write_table(self, name: str, rows: Rows) -> None:
        """Write tables/<name>.csv; the columns are the keys of all rows, in order of appearance."""
        self.tables.mkdir(exist_ok=True)
        write_text(self.tables / f"{name}.csv", as_csv(rows))

    def evaluated(self) -> list[dict[str, Any]]:
        """The lines of evaluations.jsonl: later evaluations of the run, oldest first."""
        return _read_lines(self.evaluations_file)


def find_runs(path: Paths) -> list[Path]:
    """The run directories (folders with a config.yaml) at or below `path`, sorted by name, each once; each run is
    followed by the folders of its evaluations.

    Does not search inside run directories, nor in folders whose name begins with a dot. Raises ConfigError for a path
    that does not exist.
    """
    found: dict[Path, Path] = {}
    for root in map(Path, [path] if isinstance(path, str | os.PathLike) else path):
        if not root.is_dir():
            wrong = f"{root} is a file" if root.exists() else f"{root}: no such folder"
            raise ConfigError(f"{wrong}; expected a run directory or a folder of runs, as outputs/runs")
        real = root.resolve()
        for folder in _walk(root):  # follows no links, so only `root` has to be resolved
            found.setdefault(real / folder.relative_to(root), folder)
    return list(found.values())


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        if "config.yaml" in files:
            yield Path(folder)
            yield from (file.parent for file in sorted(Path(folder, "evaluations").glob("[!.]*/config.yaml")))
            folders.clear()
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))


def metrics_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the contents of results.json, without the fingerprints of what they scored."""
    return {name: value for name, value in results.items() if not isinstance(value, str)}


def evaluated_run(path: Path) -> Path | None:
    """The run whose evaluation is in the folder `path`, None if `path` is no folder of an evaluation."""
    folder = path.absolute().parent
    return folder.parent if folder.name == "evaluations" and (folder.parent / "config.yaml").exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); delete {path.parent} to train afresh") from None
    return dict(values)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
