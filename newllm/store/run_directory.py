"""The directory of one run: its files, its lock and its state.

config.yaml       the resolved effective configuration
environment.json  command line, code version, packages, machine of the latest attempt; the run's signature
status.json       state, attempt, progress, times, host, error; name, tags and notes; the signature of a finished run
metrics.jsonl     a line per logged step and per epoch
results.json      metric name -> number, and scored/METRIC -> fingerprint of the tokens that the metric scored
tables/*.csv      per-layer, per-position, … results
train.log         what the console showed
tokenizer/        the tokenizer, so that the run can be read without its data
checkpoints/      last.safetensors (resumable), best.safetensors (weights); stable.safetensors, stable_best.safetensors:
                  the same, at the beginning of the cool-down of optim.schedule=wsd
evaluations.jsonl a line per later evaluation that added to results.json and tables/
asked.json        evaluators that a sweep has asked for since the run was done; removed when they have been called
evaluations/      a folder per evaluation with other settings: the same files without checkpoints
tracker_id        eight digits by which trackers identify this training, if one needs them

Files have content hashes, which are checked when they are read (store/intact.py). status.json has those of
results.json, metrics.jsonl, tables and evaluations.jsonl of a finished run, in `files`: name -> one hash, or two while
a file is being replaced, so that a kill in between leaves no file that looks damaged. train.log is for people and has
none.
"""

import json
import os
import platform
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from newllm.errors import ConfigError
from newllm.store.atomic import json_line, json_text, write_text
from newllm.store.csv_text import Rows, as_csv
from newllm.store.intact import (
    Damaged,
    changed,
    is_file,
    parse_mapping,
    read_bytes,
    read_json,
    read_text,
    require_types,
    sha256,
    with_hash,
    without_hash,
    write_json,
)
from newllm.store.locks import is_held, locked

State = Literal["queued", "running", "done", "failed", "interrupted"]
RUN_FILES = {"config.yaml", "status.json"}  # as in config/content.py; importing that takes newllm status too long

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml, if available, is ten times as fast
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
GENERATED_NAME = re.compile(r"-s\d+-([0-9a-f]{8})$")  # <slug>-s<seed>-<signature>
_TOP_LEVEL = re.compile(r"^(?=[^\s#-])", re.MULTILINE)  # where a key of the outermost mapping begins
_NUMBER, _NONE = (int, float), type(None)
_STATUS_TYPES: dict[str, Any] = {
    "state": str, "attempt": int, "progress": (dict, _NONE), "files": dict, "stage_seconds": (*_NUMBER, _NONE),
    "host": (str, _NONE), "pid": (int, _NONE), "error": (str, _NONE), "traceback": (str, _NONE),
    "labels": (dict, _NONE), "signature": str,
    **dict.fromkeys(("created", "started", "finished", "updated"), (str, _NONE)),
}  # fmt: skip
_CONFIG_TYPES: dict[str, Any] = {
    **dict.fromkeys(("choices", "content", "groups", "data", "model", "trainer"), dict),
    "eval": (dict, _NONE), "overrides": list,
}  # fmt: skip
_ENTRY_TYPES: dict[str, Any] = {"choices": (str, list, _NONE), "content": str, "groups": (dict, _NONE)}
_KEEP_CHANGE = "or delete the line with its sha256 to keep a change of your own"
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
    stable_checkpoint = _inside("checkpoints/stable.safetensors")
    stable_best_checkpoint = _inside("checkpoints/stable_best.safetensors")
    evaluations_file = _inside("evaluations.jsonl")
    evaluations = _inside("evaluations")
    asked_file = _inside("asked.json")
    tracker_id_file = _inside("tracker_id")

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
        self._require_kinds()
        instead = "choose another directory with hydra.run.dir=…"
        with locked(self.path / ".lock", f"the run directory {self.path}", instead, patience) as held:
            if held:
                yield self
                return
        holder = self.status()
        who = f"process {holder['pid']} on {holder['host']}" if holder.get("pid") else "another process"
        raise ConfigError(f"the run directory {self.path} is in use by {who}; wait for it, or {instead}")

    def _require_kinds(self) -> None:
        """Raises Damaged if a folder or a pipe has the name of a file that the holder of the lock writes."""
        advice = "move it elsewhere"
        for name in _FILES:
            is_file(self.path / name, advice)
        for folder in (self.tokenizer, self.tables, self.last_checkpoint.parent, self.evaluations):
            if os.path.lexists(folder) and not folder.is_dir():
                raise Damaged(folder, "is no folder", advice)

    def config(self) -> dict[str, Any]:
        """The stored effective configuration, {} if there is none yet. Raises Damaged.

        Equal parts are shared between runs, so copy one before you change it.
        """
        text = read_text(self.config_file, self._config_advice)
        if text is None:
            return {}
        text = without_hash(self.config_file, text, self._config_advice)
        config = parse_mapping(self.config_file, text, _parsed, "YAML", self._config_advice, (yaml.YAMLError,))
        if not config:
            raise Damaged(self.config_file, "holds no configuration", self._config_advice)
        if "${" in text and (reference := next(_references({**config, "overrides": None}), None)):
            raise Damaged(self.config_file, f"has a reference, {reference}, for a value", self._config_advice)
        require_types(self.config_file, config, _CONFIG_TYPES, self._config_advice)
        for key, types in _ENTRY_TYPES.items():
            entries = config.get(key, {})
            require_types(self.config_file, entries, dict.fromkeys(entries, types), self._config_advice)
        for key in config.get("content", {}):
            group, _, option = key.partition(".")
            if not (isinstance(node := config.get(group), dict) and isinstance(node.get(option), str)):
                raise Damaged(self.config_file, f"has a hash of {key}, which is no path", self._config_advice)
        return config

    def existing_config(self) -> dict[str, Any]:
        """The stored effective configuration. Raises ConfigError if this is no run directory."""
        if config := self.config():
            return config
        problem = "is no run directory, since it has no config.yaml" if self.path.exists() else "does not exist"
        raise ConfigError(f"{self.path} {problem}; runs are in outputs/runs and outputs/sweeps.")

    def require_same_run(self, file: Path, found: str | None, own: str) -> None:
        """Raises Damaged if the signature in a file of the run, if it has one, is not `own`, that of config.yaml.

        A config.yaml without its hash has been edited on purpose, and is accepted.
        """
        text = "" if found in (None, own) else read_text(self.config_file) or ""
        if without_hash(self.config_file, text) != text:
            advice = "restore the one that is not this run's"
            raise Damaged(file, f"is of the run {found}, and config.yaml of the run {own}", advice)

    def require_config(self) -> None:
        """Raises Damaged if config.yaml is missing or broken; fast, since what has its hash is not parsed."""
        text = read_text(self.config_file, self._config_advice)
        if text is None:
            raise Damaged(self.config_file, "is missing", self._config_advice)
        if without_hash(self.config_file, text, self._config_advice) == text:
            self.config()

    @property
    def _config_advice(self) -> str:
        return f"restore it, {_KEEP_CHANGE}, or delete {self.path} to train afresh"

    def write_config(self, config: Mapping[str, Any], durable: bool = True) -> None:
        text = yaml.dump(dict(config), Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
        write_text(self.config_file, with_hash(text), durable)

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
        for file in (*records, self.log_file, self.asked_file, self.tracker_id_file):
            file.unlink(missing_ok=True)
        for folder in (self.tables, self.last_checkpoint.parent, self.tokenizer, self.evaluations):
            shutil.rmtree(folder, ignore_errors=True)
        if kept:
            self.update_status(durable=False, **kept)

    def in_use(self) -> bool:
        """True if a living process holds the directory."""
        return is_held(self.path / ".lock")

    def observed(self, status: Mapping[str, Any] | None = None) -> State:
        """The actual state: interrupted if status.json says `running` and no process holds the run, or `done` and
        there are no results. status: its contents, if the caller has read it."""
        state: State = (self.status() if status is None else status).get("state", "queued")
        gone = state == "running" and not self.in_use()
        return "interrupted" if gone or (state == "done" and not is_file(self.results_file)) else state

    def tracker_id(self) -> str:
        """Eight hex digits by which trackers identify this training; new ones after `clear`."""
        if not is_file(self.tracker_id_file):
            write_text(self.tracker_id_file, secrets.token_hex(4))
        return self.tracker_id_file.read_text(encoding="utf-8").strip()

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        write_json(self.environment_file, dict(environment))

    def environment(self) -> dict[str, Any]:
        """The contents of environment.json, {} if there is none yet."""
        return read_json(self.environment_file, f"delete it, {_KEEP_CHANGE}") or {}

    def status(self) -> dict[str, Any]:
        """The contents of status.json, {} if there is none yet. Raises Damaged."""
        advice = (
            f"delete it and type the training command again, which goes on from the last checkpoint, {_KEEP_CHANGE}"
        )
        values = read_json(self.status_file, advice) or {}
        require_types(self.status_file, values, _STATUS_TYPES, advice)
        hashes = values.get("files", {})
        require_types(self.status_file, hashes, dict.fromkeys(hashes, list), advice)
        named = GENERATED_NAME.search(self.path.name)
        if named and values.get("signature", named[1]) != named[1]:
            raise Damaged(self.status_file, f"is that of another run, {values['signature']}", advice)
        return values

    def update_status(self, durable: bool = True, **changes: Any) -> None:
        """Change these fields of status.json: state, attempt, progress, error, …; `updated` is set to now,
        and `created` when the file is first written."""
        created = datetime.now(UTC).isoformat()
        status = {"created": created, **self.status(), **changes, "updated": timestamp()}
        write_json(self.status_file, status, durable)

    def labels(self) -> dict[str, Any]:
        """The name, tags and notes that the user gave the run, without those that have no value."""
        return dict(self.status().get("labels") or {})

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
        attempt = self.status().get("attempt", 0) + 1
        here: dict[str, Any] = {"host": platform.node(), "pid": os.getpid(), "started": timestamp(), "finished": None}
        self.update_status(state="running", attempt=attempt, **here, error=None, traceback=None)
        return attempt

    def end_attempt(self, state: State, error: str | None = None, traceback: str | None = None, **about: Any) -> None:
        """Record how this process's work on the run has ended; of a finished run, the hashes of its files as well.

        about: further fields.
        """
        hashes: dict[str, Any] = {}
        if state == "done":
            written = [self.results_file, self.metrics_file, self.evaluations_file, *sorted(self.tables.glob("*.csv"))]
            written.append(self.path / TOKENIZER)
            contents = {file.relative_to(self.path).as_posix(): read_bytes(file) for file in written}
            hashes["files"] = {name: [sha256(content)] for name, content in contents.items() if content is not None}
        about |= {"error": error, "traceback": traceback, "finished": timestamp()}
        self.update_status(state=state, **hashes, **about)

    def replace_files(self, texts: Mapping[str, str]) -> None:
        """Write these files of a finished run, name -> content, in this order.

        Their hashes are written before, beside those of the present contents (null: no file): either counts until all
        are written.
        """
        known, new = self.status().get("files", {}), {name: [sha256(text)] for name, text in texts.items()}
        present = {name: read_bytes(self.path / name) for name in texts}
        old = {name: None if content is None else sha256(content) for name, content in present.items()}
        either = {name: [*new[name], old[name]] for name in texts if name not in known or old[name] in known[name]}
        self.update_status(files={**known, **new, **either})
        for name, text in texts.items():
            (self.path / name).parent.mkdir(exist_ok=True)
            write_text(self.path / name, text)
        self.update_status(files={**known, **new})

    def written(self, name: str, status: Mapping[str, Any] | None = None) -> bytes | None:
        """The content of one of the run's files, as ``tables/position.csv``; None if there is none.

        Raises Damaged if it cannot be read or, of a finished run, if it is not what the run has written. status: the
        contents of status.json, if the caller has read it.
        """
        advice = _ADVICE.get(name, _ADVICE["tables"])
        content = read_bytes(self.path / name, advice)
        status = self.status() if status is None else status
        hashes = status.get("files", {}).get(name) if status.get("state") == "done" else None
        if hashes is None:
            return content
        if (None if content is None else sha256(content)) in hashes:
            return content
        raise Damaged(self.path / name, "is missing", advice) if content is None else changed(self.path / name, advice)

    def require_intact(self) -> None:
        """Raises Damaged if results, metrics or tables of a finished run are not what the run has written."""
        status = self.status()
        for name in status.get("files", {}):
            self.written(name, status)

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json_line(values))

    def sync_metrics(self) -> int:
        """Synchronise metrics.jsonl to the disk; returns its length in bytes."""
        with self.metrics_file.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def metrics_sha256(self, length: int) -> str:
        """Of the first `length` bytes of metrics.jsonl."""
        return sha256((read_bytes(self.metrics_file) or b"")[:length])

    def truncate_metrics(self, length: int, expected: str | None = None) -> None:
        """Keep the first `length` bytes: the steps of the lines after them will be repeated.

        Raises Damaged if they do not have the `expected` SHA-256.
        """
        advice = f"delete {self.path} to train afresh"
        content = read_bytes(self.metrics_file, advice) or b""
        if len(content) < length:
            raise Damaged(self.metrics_file, "is shorter than its checkpoint requires", advice)
        if expected is not None and sha256(content[:length]) != expected:
            raise changed(self.metrics_file, advice)
        with self.metrics_file.open("ab") as file:
            file.truncate(length)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; of an unfinished run, without a last one that is being written."""
        return self._lines("metrics.jsonl", whole=self.status().get("state") == "done")

    def results(self, status: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The contents of results.json, metrics and fingerprints; {} before the run is done. NaN and infinity are null.

        Raises Damaged. status: the contents of status.json, if the caller has read it.
        """
        content = self.written("results.json", status)
        if content is None:
            return {}
        advice = _ADVICE["results.json"]
        values = parse_mapping(self.results_file, content.decode(errors="replace"), json.loads, "JSON", advice)
        if not values:
            raise Damaged(self.results_file, "holds no results", advice)
        types = {name: str if name.startswith("scored/") else (*_NUMBER, _NONE) for name in values}
        require_types(self.results_file, values, types, advice)
        for name, value in values.items():
            if isinstance(value, int) and abs(value) > sys.float_info.max:
                raise Damaged(self.results_file, f"has an integer in {name} that is larger than any float", advice)
        return values

    def write_results(self, results: Mapping[str, float | str]) -> None:
        write_text(self.results_file, json_text(dict(results)))

    def is_done(self) -> bool:
        """True if the run has ended and has results."""
        return self.status().get("state") == "done" and is_file(self.results_file)

    def asked(self) -> dict[str, Any]:
        """Evaluators, with their options, that a sweep has asked for since the run was done; {} if none is left."""
        return read_json(self.asked_file, "delete it and type the sweep's command again") or {}

    def lost_results(self) -> str:
        """What to do about results.json of a finished run that is gone: a sentence."""
        if self.trained is self:
            command = shlex.join(["newllm", "status", str(self.path), "--retry", "interrupted"])
            return f"Its results.json is gone; {command} evaluates it again, without training."
        return f"Its results.json is gone; {self.evaluation_command()} makes it again."

    def evaluation_command(self) -> str:
        """The latest command that evaluated into this folder of an evaluation. Raises Damaged."""
        typed: list[str] = next((line["overrides"] for line in reversed(self.evaluated())), [])
        return shlex.join(["newllm", "evaluate", str(self.trained.path), *typed])

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
        lines = [{"eval": None, "metrics": [], "overrides": [], **line} for line in self._lines("evaluations.jsonl")]
        for line in lines:
            types = {"eval": dict, "metrics": list, "overrides": list}
            require_types(self.evaluations_file, line, types, _ADVICE["evaluations.jsonl"])
        return lines

    def _lines(self, name: str, whole: bool = True) -> list[dict[str, Any]]:
        lines = (self.written(name) or b"").splitlines(keepends=True)
        if not whole and lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        texts = (line.decode(errors="replace") for line in lines)
        return [parse_mapping(self.path / name, text, json.loads, "JSON", _ADVICE[name]) for text in texts]


TOKENIZER = "tokenizer/tokenizer.meta.json"  # has the hash of tokenizer.json
_FILES = (
    ".lock", "config.yaml", "environment.json", "status.json", "metrics.jsonl", "results.json", "train.log",
    "evaluations.jsonl", "checkpoints/last.safetensors", "checkpoints/best.safetensors",
    "checkpoints/stable.safetensors", "checkpoints/stable_best.safetensors",
)  # fmt: skip
_EVALUATE_AGAIN = (
    "restore it, or delete results.json and type the training command again, which repeats the evaluation but not the "
    "training"
)
_ADVICE = {
    "results.json": _EVALUATE_AGAIN,
    "tables": f"{_EVALUATE_AGAIN}; newllm evaluate RUN writes tables of its evaluators again",
    "metrics.jsonl": "restore it, or delete the run's directory to train afresh",
    "evaluations.jsonl": _EVALUATE_AGAIN,
    TOKENIZER: _EVALUATE_AGAIN,
}


def _parsed(text: str) -> Any:
    """The content of YAML. The runs of a sweep share most blocks (an outermost key and what it holds), and each is
    parsed once: 2,000 configurations take 0.7 s, not 4."""
    try:
        blocks = map(_parsed_block, _TOP_LEVEL.split(text))
        return {key: value for block in blocks for key, value in (block or {}).items()}
    except (yaml.YAMLError, AttributeError):  # written by another program
        return yaml.load(text, Loader=_LOADER)


@lru_cache(maxsize=4096)
def _parsed_block(text: str) -> Any:
    return yaml.load(text, Loader=_LOADER)


def metrics_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the contents of results.json, without the fingerprints of what they scored."""
    return {name: value for name, value in results.items() if not isinstance(value, str)}


def evaluated_run(path: Path) -> Path | None:
    """The run whose evaluation is in the folder `path`, None if `path` is no folder of an evaluation."""
    folder = path.absolute().parent
    return folder.parent if folder.name == "evaluations" and is_run(folder.parent) else None


def is_run(folder: Path) -> bool:
    """Whether the folder is a run directory. One of the files is enough, so that a run that has lost one is seen."""
    return any(os.path.lexists(folder / name) for name in RUN_FILES)


def _references(value: Any) -> Iterator[str]:
    """The texts that OmegaConf would resolve, as from this machine's environment variables."""
    if isinstance(value, str):
        yield from [value] if "${" in value else []
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _references(inner)


def timestamp() -> str:
    """The time for records, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
