"""A finished run evaluated again: to see its numbers again, to add others, or to see it under other settings.

A number or table that stands in a directory is never changed: it comes out equal, or nothing at all is written.
"""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from newllm.config.identity import canonical, folder_name
from newllm.config.reevaluation import Evaluation
from newllm.console import Console, number
from newllm.data.tokenizer import Tokenizer
from newllm.errors import ConfigError, RunError
from newllm.evaluation import evaluate
from newllm.model import build_model
from newllm.run.finished import plan_evaluation
from newllm.run.prepare import counts, prepare, subject
from newllm.store.atomic import json_line, write_text
from newllm.store.csv_text import as_csv, same
from newllm.store.environment import describe, settled
from newllm.store.run_directory import RunDirectory
from newllm.training.checkpoint import load_weights, weight_shapes
from newllm.training.context import Run
from newllm.training.signals import Signals

TRAINING = {"loss": ("val/loss", "val/ppl")}  # what training measures too, in batches of its own, by its evaluator
PATIENCE = 60.0  # seconds; others hold a finished run's directory only while they add to it


def evaluate_run(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    rerun: bool = False,
    apart: bool = False,
) -> dict[str, float]:
    """What `newllm evaluate PATH …` does for one run; returns the metrics of this evaluation.

    overrides: as on the command line, ``["eval=[extrapolation]", "pos_encoding.scaling=yarn"]``; none of them: the
    run's own evaluation is repeated. rerun: compute also what has been found before. apart: keep the results in a
    folder of their own also where only evaluators have other options.

    Raises ConfigError for what cannot be asked, RunError where a number that stands there comes out otherwise.
    """
    run, asked = plan_evaluation(path, overrides, config_dir, apart)
    return reevaluate(run, asked, rerun)


def reevaluate(
    run: RunDirectory, asked: Evaluation, rerun: bool = False, signals: Signals | None = None
) -> dict[str, float]:
    """The metrics of an evaluation: stored, if it has been made before, else computed, compared and added."""
    directory, console = _directory(run, asked), Console(bar=False)
    if not rerun and not asked.repeats and (known := _found_before(directory, asked.config["eval"])):
        rows = [{"metric": name, "value": number(value)} for name, value in known.items()]
        console.section(f"Evaluated before: {directory.path}", [rows])
        console.line("rerun=true computes these once more, and compares.")
        return known

    started = _now()
    this = _prepare(run, asked)
    _show_header(console, run, asked, this)
    metrics: dict[str, float] = counts(this) if asked.said else {}  # else these are the run's own
    tables: dict[str, Any] = {}
    this.model.position.adapt(this.cfg.data.seq_len)
    for findings in evaluate(this.cfg.eval, subject(this)):
        console.section(findings.title, findings.body)
        metrics |= findings.metrics
        tables |= findings.tables
        this.model.position.adapt(this.cfg.data.seq_len)  # which an evaluator of other lengths has changed

    try:
        with signals.deferred() if signals else nullcontext(), run.locked(PATIENCE):
            compared = _compare(directory, metrics, tables)
            if not compared["different"] and (compared["new"] or not asked.repeats):
                line = _line(asked, this, metrics, compared)
                _add(directory, metrics, tables, compared["new"], line)
                console.open_log(directory.log_file)
                console.close_log()
                if not directory.config_file.exists():  # which makes a folder a run directory
                    _finish(directory, asked, started)
    except OSError as error:
        raise RunError(f"{directory.path} can't be written ({error}); mend that and type the same command.") from error
    _say(console, run, directory, asked, compared)
    return metrics


def _directory(run: RunDirectory, asked: Evaluation) -> RunDirectory:
    """Where results belong: to the run if its settings are unchanged, else to a directory in its evaluations/.

    A directory that carries the signature is taken whatever the rest of its name.
    """
    if not asked.said:
        return run
    name = folder_name(asked.said, asked.of_folder())
    existing = sorted(run.evaluations.glob(f"*-{name.rpartition('-')[2]}"))
    return RunDirectory(existing[0] if existing else run.evaluations / name)


def _found_before(directory: RunDirectory, evaluators: Mapping[str, Any]) -> dict[str, float] | None:
    """The metrics of an earlier evaluation by the same evaluators with the same options."""
    if not directory.config_file.exists():
        return None
    results = directory.results()
    for line in reversed(directory.evaluated()):
        if canonical(line["eval"]) == canonical(evaluators) and all(name in results for name in line["metrics"]):
            return {name: results[name] for name in line["metrics"]}
    return None


def _prepare(run: RunDirectory, asked: Evaluation) -> Run:
    """The run's model with its weights, and data, under the settings that are asked for."""
    trained, cfg = OmegaConf.create(asked.trained), OmegaConf.create(asked.config)
    length = trained.data.seq_len
    _refuse_other_weights(trained, cfg, Tokenizer.load(run.tokenizer).vocab_size, length)
    other_data = any(key.startswith("data.") for key in asked.changes)
    if other_data and cfg.data.tokenizer == "auto":
        cfg.data.tokenizer = str(run.tokenizer)
    noted = settled(run.environment_file)
    if noted and cfg.runtime.threads == "auto":
        cfg.runtime.threads = noted.threads
    if noted and cfg.trainer.precision == "auto":
        cfg.trainer.precision = noted.precision
    cfg.logger = {"_target_": "newllm.training.loggers.NoLogger"}
    cfg.run_dir = str(run.path)
    this = prepare(cfg, trained_length=length)
    last = cfg.trainer.eval_weights == "last"
    about = load_weights(run.last_checkpoint if last else run.best_checkpoint, this.model)
    if not other_data and about["data"] != this.data.fingerprint:
        raise ConfigError(
            f"the text of {run.path} is not what it was when the run was trained, so its numbers would not "
            "compare; put it back, or evaluate on another text with data.path=… or data=NAME"
        )
    limit = this.model.position.limit
    if limit is not None and cfg.data.seq_len > limit:
        raise ConfigError(
            f"data.seq_len={cfg.data.seq_len}: pos_encoding={cfg.choices.pos_encoding} has values for {limit} "
            f"positions; type data.seq_len={limit} or less."
        )
    return this


def _refuse_other_weights(trained: DictConfig, cfg: DictConfig, tokens: int, seq_len: int) -> None:
    """ConfigError where the settings asked for need weights that the run has not, or leave some unused."""
    with torch.device("meta"):
        there, needed = (weight_shapes(build_model(one, tokens, seq_len)) for one in (trained, cfg))
    wrong = [name for name in sorted({*there, *needed}) if there.get(name) != needed.get(name)]
    if wrong:
        name = wrong[0]
        reason = "has no such weights" if name not in there else "has weights that they leave out"
        reason = "has them in another shape" if name in there and name in needed else reason
        raise ConfigError(
            f"these settings are of another model: {name} is {needed.get(name, 'absent')} in it, and the run {reason} "
            f"({there.get(name, 'absent')}); a finished run takes settings that leave its weights as they are, "
            "as pos_encoding.scaling=yarn does."
        )


def _compare(
    directory: RunDirectory, metrics: Mapping[str, float], tables: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """What is found with what stands in `directory`: lines {name, stored, now} by how they compare.

    new, equal, different; kept: different numbers that training has measured by itself, which stay as they are.
    """
    files = {f"tables/{file.name}": file.read_text(encoding="utf-8") for file in directory.tables.glob("*.csv")}
    stored: dict[str, Any] = {**directory.results(), **files}
    of_training = _of_training(directory)
    found: dict[str, Any] = {**metrics, **{f"tables/{name}.csv": as_csv(rows) for name, rows in tables.items()}}
    compared: dict[str, list[dict[str, Any]]] = {side: [] for side in ("new", "equal", "different", "kept")}
    for name, now in found.items():
        then: Any = stored.get(name)
        if name not in stored:
            side = "new"
        elif same(then, now) if isinstance(now, str) else then == now or (then is None and not math.isfinite(now)):
            side = "equal"
        else:
            side = "kept" if name in of_training else "different"
        shown = {"stored": then, "now": now} if name in metrics else {"stored": "other cells", "now": "other cells"}
        compared[side].append({"name": name, **shown})
    return compared


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


def _add(
    directory: RunDirectory,
    metrics: Mapping[str, float],
    tables: Mapping[str, Any],
    new: Sequence[Mapping[str, Any]],
    line: dict[str, Any],
) -> None:
    """Write what is new into `directory`: tables first, so that no metric is there without its table, and last the line
    of evaluations.jsonl, which says that it is done."""
    names = [one["name"] for one in new]
    directory.path.mkdir(parents=True, exist_ok=True)
    for table, rows in tables.items():
        if f"tables/{table}.csv" in names:
            directory.write_table(table, rows)
    directory.write_results({**directory.results(), **{name: metrics[name] for name in names if name in metrics}})
    file = directory.evaluations_file
    write_text(file, (file.read_text(encoding="utf-8") if file.exists() else "") + json_line(line))


def _line(asked: Evaluation, this: Run, metrics: Mapping[str, float], compared: Mapping[str, Any]) -> dict[str, Any]:
    """The line of evaluations.jsonl."""
    ran_on = describe(device=str(this.device), threads=this.runtime.threads, precision=this.precision)
    environment = {name: ran_on[name] for name in ("git", "device", "threads", "precision", "cpu", "host")}
    return {
        "time": _now(),
        "overrides": list(asked.config["overrides"]),
        "eval": asked.config["eval"],
        "metrics": [*metrics],
        "new": len(compared["new"]),
        "equal": len(compared["equal"]),
        "kept": [kept["name"] for kept in compared["kept"]],
        "environment": {**environment, "torch": ran_on["packages"].get("torch")},
    }


def _finish(directory: RunDirectory, asked: Evaluation, started: str) -> None:
    """Make the folder of an evaluation under other settings a run directory: config.yaml comes last."""
    process: dict[str, Any] = {"host": platform.node(), "pid": os.getpid()}
    directory.update_status(state="done", attempt=1, error=None, started=started, finished=_now(), **process)
    directory.write_config(asked.of_folder())


def _show_header(console: Console, run: RunDirectory, asked: Evaluation, this: Run) -> None:
    cfg, threads = this.cfg, this.runtime.threads
    console.title("newllm evaluate")
    console.settings(
        {
            "run directory": str(run.path),
            "weights": cfg.trainer.eval_weights,
            "evaluators": ", ".join(cfg.eval),
            "machine": f"{this.device}, {this.precision}, {threads} thread{'s' * (threads != 1)}",
        }
    )
    for line in asked.differences():
        console.line(f"Otherwise than in training: {line}.", style="yellow")
    for note in this.data.notes:
        console.line(f"Note: {note}", style="yellow")


def _say(
    console: Console, run: RunDirectory, directory: RunDirectory, asked: Evaluation, compared: Mapping[str, Any]
) -> None:
    """How the results compare, and where they are. RunError if they do not."""
    equal, different = len(compared["equal"]), compared["different"]
    if different:
        rows = [{name: _exact(value) for name, value in line.items()} for line in different]
        console.section("Not as it was", [rows, *_changed_machine(run)])
        raise RunError(
            f"{len(rows)} of {equal + len(rows)} results in {directory.path} came out otherwise, so nothing was "
            "written; " + ("" if asked.repeats else "evaluators with other options keep theirs apart with apart=true")
        )
    console.line()
    for line in compared["kept"]:
        stored, now = _exact(line["stored"]), _exact(line["now"])
        console.line(f"{line['name']} stays {stored}, as training measured it; eval.loss gives {now}.")
    if asked.repeats and equal:
        console.line(f"Reproduced: {equal} results, all equal.", style="bold")
    elif equal:
        console.line(f"{equal} results that stood there came out equal.")
    if new := [line for line in compared["new"] if not line["name"].startswith(("params/", "data/"))]:
        console.line(f"{len(new)} new results are in {directory.path}.", style="bold")


def _changed_machine(run: RunDirectory) -> list[str]:
    """What has changed since the run was made, of all that may move numbers."""
    then = run.environment()
    here = describe(device=then.get("device", ""), threads=0, precision="")
    pairs: dict[str, tuple[Any, Any]] = {name: (then.get(name), here[name]) for name in ("cpu", "git", "platform")}
    pairs["torch"] = then.get("packages", {}).get("torch"), here["packages"].get("torch")
    return [f"{name} was {one}, is {other}" for name, (one, other) in pairs.items() if one != other]


def _exact(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
