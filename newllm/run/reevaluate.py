"""Evaluates a finished run again: to reproduce its numbers, to add others, or under other settings.

A stored number or table never changes: either it is reproduced to the last bit, or nothing is written.
"""

import math
import os
import platform
import shlex
from collections.abc import Mapping
from contextlib import closing, nullcontext
from typing import Any

import torch

from newllm.config.identity import canonical, folder_name, stored_signature
from newllm.config.values import check_stored
from newllm.console import Console, number
from newllm.data.tokenizer import Tokenizer
from newllm.errors import ConfigError, RunError
from newllm.evaluation import evaluate
from newllm.loggers import Loggers, Tracked
from newllm.model import build_model
from newllm.run.evaluation_plan import EvaluationPlan
from newllm.run.prepare import counts, prepare, subject
from newllm.store.atomic import json_line, json_text
from newllm.store.csv_text import as_csv, equal_csv
from newllm.store.environment import describe, numeric_settings
from newllm.store.intact import Damaged
from newllm.store.run_directory import RunDirectory, metrics_of, timestamp
from newllm.training.checkpoint import load_weights, weight_shapes
from newllm.training.run_context import Run
from newllm.training.signals import Signals

# Training measures these too, in other batches than eval.loss, so that the last bits may differ.
MEASURED_IN_TRAINING = ("val/loss", "val/ppl")
LOCK_TIMEOUT = 60.0  # seconds; other processes lock a finished run's directory only while they add to it


def reevaluate(
    plan: EvaluationPlan, rerun: bool = False, signals: Signals | None = None, log: bool = False
) -> dict[str, float]:
    """Carry out a plan; returns its metrics. If an earlier evaluation stored them, they are read; else they are
    computed, compared with what is stored, and added. log: send all results of the run to its loggers, as training
    does.
    """
    directory, console = _results_directory(plan), Console(bar=False)
    read = not rerun and not plan.repeats and directory.is_done()
    results = directory.results()
    for line in reversed(directory.evaluated() if read else []):
        if canonical(line["eval"]) == canonical(plan.config["eval"]) and results.keys() >= {*line["metrics"]}:
            stored = {name: results[name] for name in line["metrics"]}
            rows = [{"metric": name, "value": number(value)} for name, value in stored.items()]
            console.section(f"Evaluated before: {directory.path}", [rows])
            console.line("rerun=true computes them again and compares.")
            return stored

    started = timestamp()
    loggers = Loggers(plan.config["logger"] if log else {}, directory.path)
    run = _prepare(plan)
    console.title("newllm evaluate")
    console.settings({
        "run directory": str(plan.run.path),
        "weights": run.cfg.trainer.eval_weights,
        "evaluators": ", ".join(run.cfg.eval),
        "machine": f"{run.device}, {run.precision}, {run.runtime.threads} thread{'s' * (run.runtime.threads != 1)}",
    })  # fmt: skip
    for difference in plan.differences():
        console.line(f"Differs from training: {difference}.", style="yellow")
    for note in run.data.notes:
        console.line(f"Note: {note}", style="yellow")
    metrics: dict[str, float] = counts(run) if plan.settings else {}  # the run's own directory has them already
    scored: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    made_by: dict[str, str] = {}  # result or table -> evaluator
    run.model.position.adapt(run.cfg.data.seq_len)
    for name, findings in zip(run.cfg.eval, evaluate(run.cfg.eval, subject(run)), strict=True):
        console.section(findings.title, findings.body)
        metrics |= findings.metrics
        scored |= {name: value for name, value in findings.results.items() if name not in findings.metrics}
        tables |= findings.tables
        made_by |= dict.fromkeys([*findings.results, *(f"tables/{table}.csv" for table in findings.tables)], str(name))
        run.model.position.adapt(run.cfg.data.seq_len)  # an evaluator of other lengths may have changed it

    try:
        with signals.deferred() if signals else nullcontext(), plan.run.locked(LOCK_TIMEOUT):
            compared = _compare(directory, metrics | scored, tables)
            differ = {made_by.get(line["name"], "") for line in compared["different"]}
            other = plan.with_other_options(directory, differ)
            if other and not log:
                console.line(f"The results in {directory.path} are of other options, and stay.", style="yellow")
                plan, directory, other = other, _results_directory(other), None
                metrics = counts(run) | metrics
                compared = _compare(directory, metrics | scored, tables)
            if not compared["different"] and (compared["new"] or not plan.repeats):
                _add(plan, directory, run, metrics | scored, tables, compared)
                console.open_log(directory.log_file)
                console.close_log()
                if not directory.is_done():  # a new folder, or one of an evaluation that was killed here
                    process: dict[str, Any] = {"host": platform.node(), "pid": os.getpid()}
                    times: dict[str, Any] = {"started": started, "finished": timestamp()}
                    directory.write_config(plan.folder_config())
                    directory.update_status(state="done", attempt=1, error=None, **times, **process)
    except OSError as error:
        raise RunError(
            f"{directory.path} can't be written ({error}); fix that and type the same command again."
        ) from error
    _report(console, plan, directory, compared, other)
    if log:
        with closing(loggers):
            loggers.start(Tracked(directory, directory.config()), directory.metrics(), console.line)
            loggers.finish(metrics_of(directory.results()), directory.tables)
    return metrics


def _results_directory(plan: EvaluationPlan) -> RunDirectory:
    """The run's directory if its settings are unchanged, else a folder in its evaluations/.

    A folder is found by the signature that ends its name, whatever the rest of the name.
    """
    if not plan.settings:
        return plan.run
    name = folder_name(plan.settings, plan.folder_config())
    existing = sorted(plan.run.evaluations.glob(f"*-{name.rpartition('-')[2]}"))
    return RunDirectory(existing[0] if existing else plan.run.evaluations / name)


def _prepare(plan: EvaluationPlan) -> Run:
    """The run's model with its trained weights, and its data, under the settings of the plan."""
    directory = plan.run
    trained, cfg = check_stored(plan.trained), check_stored(plan.config)
    length, tokens = trained.data.seq_len, Tokenizer.load(directory.tokenizer).vocab_size
    with torch.device("meta"):
        stored, needed = (weight_shapes(build_model(config, tokens, length)) for config in (trained, cfg))
    for name in sorted({*stored, *needed}):
        if stored.get(name) != needed.get(name):
            raise ConfigError(
                f"these settings make another model: its {name} has shape {needed.get(name, 'none (it is absent)')}, "
                f"the run's {stored.get(name, 'none (it is absent)')}; only settings that keep the run's weights can "
                "be changed, such as pos_encoding.scaling=yarn."
            )
    other_data = any(key.startswith("data.") for key in plan.changes)
    if other_data and cfg.data.tokenizer == "auto":
        cfg.data.tokenizer = str(directory.tokenizer)
    if "data.tokenizer" in plan.trained.get("content", {}):  # its folder may have moved; the run has a copy
        cfg.data.tokenizer = str(directory.tokenizer)
        cfg.content.pop("data.tokenizer", None)
    own = stored_signature(plan.trained)
    auto = numeric_settings(directory.environment_file)  # what "auto" was in training
    if auto:
        directory.require_same_run(directory.environment_file, auto.signature, own)
    if auto and cfg.runtime.threads == "auto":
        cfg.runtime.threads = auto.threads
    if auto and cfg.trainer.precision == "auto":
        cfg.trainer.precision = auto.precision
    cfg.run_dir = str(directory.path)
    run = prepare(cfg, trained_length=length)
    last = cfg.trainer.eval_weights == "last"
    checkpoint = directory.last_checkpoint if last else directory.best_checkpoint
    about = load_weights(checkpoint, run.model)
    directory.require_same_run(checkpoint, about["signature"], own)
    if not other_data and about["data"] != run.data.fingerprint:
        raise ConfigError(
            f"the text of {directory.path} has changed since the run was trained, so its numbers would not compare; "
            "restore it, or evaluate on another text with data.path=… or data=NAME"
        )
    limit = run.model.position.limit
    if limit is not None and cfg.data.seq_len > limit:
        raise ConfigError(
            f"data.seq_len={cfg.data.seq_len}: pos_encoding={cfg.choices.pos_encoding} has values for {limit} "
            f"positions; type data.seq_len={limit} or less."
        )
    return run


def _compare(
    directory: RunDirectory, now_measured: Mapping[str, Any], tables: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Compare results with those stored in `directory`: lines {name, stored, now} by outcome.

    The outcomes are new, equal, different, and kept: numbers that differ from training's own, which stay.
    """
    compared: dict[str, list[dict[str, Any]]] = {outcome: [] for outcome in ("new", "equal", "different", "kept")}
    stored, config = directory.results(), directory.config()
    from_training = directory.trained is directory and "loss" not in config.get("eval", {})
    for name, now in now_measured.items():
        old = stored.get(name)
        if name not in stored:
            outcome = "new"
        elif old == now or (old is None and not math.isfinite(now)):
            outcome = "equal"
        else:
            metric = name.removeprefix("scored/")
            outcome = "kept" if from_training and metric in MEASURED_IN_TRAINING else "different"
        compared[outcome].append({"name": name, "stored": old, "now": now})
    for name, rows in tables.items():
        line, outcome = {"name": f"tables/{name}.csv", "stored": "other cells", "now": "other cells"}, "new"
        try:
            if (content := directory.written(line["name"])) is not None:
                outcome = "equal" if equal_csv(content.decode(), as_csv(rows)) else "different"
        except Damaged as error:
            line["damage"] = str(error).partition(";")[0]
        compared[outcome].append(line)
    return compared


def _add(
    plan: EvaluationPlan,
    directory: RunDirectory,
    run: Run,
    results: Mapping[str, Any],
    tables: Mapping[str, Any],
    compared: Mapping[str, Any],
) -> None:
    """Write new results into `directory`: tables first, so that no metric lacks its table; last the line of
    evaluations.jsonl. All have their hashes before, so that a kill leaves nothing that looks damaged."""
    new = [line["name"] for line in compared["new"]]
    here = describe(device=str(run.device), threads=run.runtime.threads, precision=run.precision)
    environment = {name: here[name] for name in ("git", "device", "threads", "precision", "cpu", "host")}
    line = {
        "time": timestamp(),
        "overrides": list(plan.config["overrides"]),
        "eval": plan.config["eval"],
        "metrics": [*metrics_of(results)],
        "new": len(new),
        "equal": len(compared["equal"]),
        "kept": [kept["name"] for kept in compared["kept"]],
        "environment": {**environment, "torch": here["packages"].get("torch")},
    }
    together = {**directory.results(), **{name: results[name] for name in new if name in results}}
    texts = {f"tables/{name}.csv": as_csv(rows) for name, rows in tables.items() if f"tables/{name}.csv" in new}
    texts["results.json"] = json_text(together)
    texts["evaluations.jsonl"] = "".join(map(json_line, [*directory.evaluated(), line]))
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.replace_files(texts)


def _report(
    console: Console,
    plan: EvaluationPlan,
    directory: RunDirectory,
    compared: Mapping[str, Any],
    other: EvaluationPlan | None,
) -> None:
    """Print how the results compare and where they are. Raises RunError if any differs from the stored one.

    other: the plan for a folder of its own, if other options of evaluators are why results differ.
    """
    different = compared["different"]
    equal, kept = (
        [line for line in compared[outcome] if not line["name"].startswith("scored/")] for outcome in ("equal", "kept")
    )
    if different:
        rows = [{name: _exact(value) for name, value in line.items()} for line in different]
        # What has changed since training and may change numbers.
        then = plan.run.environment()
        here = describe(device=then.get("device", ""), threads=0, precision="")
        pairs = {name: (then.get(name), here[name]) for name in ("cpu", "git", "platform")}
        pairs["torch"] = then.get("packages", {}).get("torch"), here["packages"].get("torch")
        changes = [f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new]
        console.section("Differences", [rows, *changes])
        if other:
            typed = [f"eval.{setting}" for setting in other.settings if setting not in plan.settings]
            words = shlex.join([f"eval=[{','.join(other.options)}]", *typed])
            raise ConfigError(
                f"the results in {directory.path} were made with other options than {', '.join(typed)}, and would "
                f"change, so nothing was written; newllm evaluate {directory.path} {words} writes them into a folder "
                "of their own."
            )
        raise RunError(
            f"{len(rows)} of {len(equal) + len(rows)} results in {directory.path} differ from the stored ones, so "
            "nothing was written."
        )
    console.line()
    for line in kept:
        stored, now = _exact(line["stored"]), _exact(line["now"])
        console.line(f"{line['name']} stays {stored}, as measured in training; eval.loss gives {now}.")
    if plan.repeats and equal:
        console.line(f"Reproduced: {len(equal)} results, all equal.", style="bold")
    elif equal:
        console.line(f"{len(equal)} stored results were reproduced.")
    for line in compared["new"]:
        if "damage" in line:
            console.line(f"{line['damage']}; it was made again.", style="yellow")
    if new := [line for line in compared["new"] if not line["name"].startswith(("params/", "data/", "scored/"))]:
        console.line(f"{len(new)} new results are in {directory.path}.", style="bold")


def _exact(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
