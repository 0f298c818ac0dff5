"""One run from its configuration to its results: check, prepare, probe, run stages, train or resume, evaluate."""

import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, open_dict

from newllm.analysis.published import distance, for_console
from newllm.config import differences, effective, run_directory, signature
from newllm.config.compose import labels_of
from newllm.config.groups import group_of
from newllm.config.identity import with_content
from newllm.config.values import check_values
from newllm.console import Console
from newllm.errors import (
    ConfigError,
    Interrupted,
    NewllmError,
    RunError,
    as_newllm_error,
    disk_is_full,
    ran_out_of_memory,
)  # fmt: skip
from newllm.evaluation import Findings, evaluate
from newllm.loggers import Tracked
from newllm.run import printing
from newllm.run.evaluation_plan import EvaluationPlan, missing_evaluators
from newllm.run.follower import follow
from newllm.run.prepare import counts, prepare, subject
from newllm.run.reevaluate import reevaluate
from newllm.run.stage import StageResult, run_stages
from newllm.runtime import Place
from newllm.store.environment import describe
from newllm.store.output_folder import check_run_folder
from newllm.store.own_code import code_of_run
from newllm.store.run_directory import RunDirectory, metrics_of
from newllm.streams import go_on_without_output
from newllm.suggest import listed
from newllm.training import causality
from newllm.training.checkpoint import Progress, load_weights
from newllm.training.compilation import compile_if_worthwhile
from newllm.training.distributed import end_launched, launched_store, team
from newllm.training.loop import Loop
from newllm.training.run_context import Run, StepMaker
from newllm.training.signals import Signals
from newllm.training.step import cut


def run(cfg: DictConfig) -> int:
    """Do the run of a composed configuration, or the part of this process in it; returns the exit status.

    The process's signals stop it. Raises what `execute` raises.
    """
    go_on_without_output()
    place = Place.from_environment()
    if place.rank > 0:
        return follow(cfg, place)
    store = launched_store() if place.launched else None
    with Signals().installed() as signals:
        try:
            return execute(cfg, signals)
        finally:
            if store is not None:
                end_launched(store, place)


def execute(cfg: DictConfig, signals: Signals, packed: StepMaker | None = None) -> int:
    """Do a run until `signals` stop it; returns the exit status.

    A finished run is given the evaluators that it lacks and shows its results; an interrupted one resumes from its last
    checkpoint.

    packed: makes the training steps together with those of other runs.

    Raises:
        ConfigError: before anything is written; later only for a checkpoint that is damaged or of other data, and for
            a first phase that has not converged.
        RunError: the run has failed; its status.json says so too.
    """
    check_values(cfg)
    if content := with_content(effective(cfg)).get("content"):  # once, so that all parts agree on what the run reads
        with open_dict(cfg):
            cfg.content = content
    if cfg.run_dir:
        check_run_folder(cfg.run_dir, effective(cfg))
    directory = RunDirectory(run_directory(cfg))
    console = Console(bar=cfg.runtime.progress and packed is None)
    if _is_done(cfg, directory):
        return _evaluate_done(cfg, directory, console, signals)
    queued = directory.status().get("state") == "queued"
    try:
        this = prepare(cfg)
        this.console, this.signals, this.packed = console, signals, packed
        with directory.locked():
            done = _is_done(cfg, directory)  # by another process, in the meantime
            if queued and directory.status().get("state") == "interrupted":  # cancelled while this process prepared
                raise Interrupted(signal.SIGTERM)
            signals.check()
            if not done:
                with _attempt(this) as attempt, closing(this.loggers):
                    _train_and_evaluate(this, attempt)
        if done or directory.asked():
            return _evaluate_done(cfg, directory, console, signals)
    except Interrupted as stop:
        console.line(f"{stop}. The same command goes on from here.", style="bold")
        return stop.exit_status
    finally:
        console.close_log()
    return 0


def _is_done(cfg: DictConfig, directory: RunDirectory) -> bool:
    """Whether the run is done, whatever its evaluators. Raises ConfigError if the directory holds another run."""
    stored = directory.config()
    if stored and signature(stored) != signature(cfg):
        found = differences(stored, cfg)
        raise ConfigError(
            f"{directory.path} holds a run of another configuration ({listed(found)}); give this run a directory of "
            "its own with hydra.run.dir=…, or leave that out to have one named for it"
        )
    return directory.is_done()


def _evaluate_done(cfg: DictConfig, directory: RunDirectory, console: Console, signals: Signals) -> int:
    """Call the evaluators that a finished run lacks, and show its results; returns the exit status."""
    directory.require_intact()
    config, stored = effective(cfg), directory.config()
    missing = missing_evaluators(directory, {**config["eval"], **directory.asked()})
    if missing and not os.access(directory.path, os.W_OK):
        raise ConfigError(
            f"{directory.path} is done but not writable, so the results of 'eval=[{','.join(missing)}]' can't be "
            "added; copy it and evaluate the copy."
        )
    if missing:
        console.line(f"This training is done; what follows are the evaluators that it lacks: {', '.join(missing)}.")
        plan = EvaluationPlan(directory, stored, {**config, "eval": missing}, {}, (), repeats=False)
        try:
            reevaluate(plan, signals=signals, log=True)
        except Interrupted as stop:
            console.line(f"{stop}. The same command calls the evaluators again.", style="bold")
            return stop.exit_status
    if directory.asked():
        directory.ask({})
    if directory.status().get("error"):  # of an earlier attempt at these evaluators
        directory.update_status(error=None, traceback=None)
    results = metrics_of(directory.results())
    directory.label(labels_of(cfg))
    console.line(f"This run is done: {directory.path} holds its results. Another seed makes another run (seed=…).")
    printing.summary(console, results, str(directory.path))
    return 0


@contextmanager
def _attempt(run: Run) -> Iterator[int]:
    """An attempt at the run in its locked directory; status.json says how it ended. Yields the attempt's number."""
    directory = run.directory
    directory.write_config(effective(run.cfg))
    number = directory.begin_attempt()
    directory.label(labels_of(run.cfg))
    try:
        run.console.open_log(directory.log_file)
        yield number
        directory.end_attempt("done", signature=signature(run.cfg))
    except Interrupted:
        directory.end_attempt("interrupted")
        raise
    except BaseException as error:
        reason = (as_newllm_error(error) if ran_out_of_memory(error) else None) or error
        if disk_is_full(error):
            reason = RunError(
                f"The disk of {directory.path} is full; the last checkpoint is whole, so make room and type the same "
                "command to go on"
            )
        with suppress(OSError):  # a full disk must not hide what went wrong
            trace = None if isinstance(reason, NewllmError) else traceback.format_exc()
            if trace:
                run.console.log_only(trace)
            directory.end_attempt("failed", str(reason) or type(reason).__name__, trace)
        if reason is not error:
            raise reason from error
        raise


def _train_and_evaluate(run: Run, attempt: int) -> None:
    directory, console, earlier = run.directory, run.console, run.earlier
    device_name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else str(run.device)
    environment = describe(device=device_name, threads=run.runtime.threads, precision=run.precision)
    environment |= {"compiled": earlier.compiled if earlier else False, "signature": signature(run.cfg)}
    environment |= code_of_run(directory.config())
    directory.write_environment(environment)
    directory.tokenizer.mkdir(exist_ok=True)
    run.data.tokenizer.save(directory.tokenizer)

    with team(run) as others:
        printing.header(run)
        if run.packed:
            several = f"{run.packed.others} other run{'s' * (run.packed.others > 1)}"
            console.line(f"Trains together with {several}; the times are of all of them.")
        causality.check(run.model, run.data.val.batch(np.arange(1))[0][0].to(run.device), run.precision)

        earlier_seconds = float(directory.status().get("stage_seconds") or 0.0)
        stages = run_stages(run)
        loop = Loop(run, others, stages.data, stages.metrics_bytes)
        if loop.resume():
            console.line(f"Attempt {attempt}: goes on after step {loop.progress.step:,} of {loop.steps:,}.")
            earlier_seconds += loop.progress.seconds
        elif trunk := loop.branch():
            console.line(
                f"Begins after step {loop.progress.step:,} of {loop.steps:,}, with the checkpoint of "
                f"{trunk.directory.path}: until there, the two are the same run."
            )
            earlier, earlier_seconds = trunk.settings, earlier_seconds + loop.progress.seconds
        run.loggers.start(Tracked(directory, effective(run.cfg)), directory.metrics(), console.line)
        stage_alone = any(group_of(stage, run.cfg).pack == "alone" for stage in run.stages)
        wanted = earlier.compiled if earlier else run.runtime.compile
        if run.trainer.recompute:
            if wanted is True or run.runtime.graph is True:
                console.line(
                    "trainer.recompute=true: no step is compiled or a CUDA graph, since torch traces no layer that is "
                    f"computed again{'; the last bits may change from here on' if earlier and wanted else ''}."
                )
        elif not (run.packed or run.trainer.devices > 1 or stage_alone):
            batch = run.trainer.order(loop.data, 0)[: run.trainer.batch_size]
            piece = cut(loop.data.train, batch, run.trainer.accumulate)[0]
            remaining = loop.steps - loop.progress.step
            if compile_if_worthwhile(wanted, loop.step, piece, remaining, run.runtime, console.line):
                directory.write_environment({**environment, "compiled": True})
            if run.device.type == "cuda":
                loop.step.graph, loop.step.say = run.runtime.graph, console.line
            elif run.runtime.graph is True:
                console.line(f"runtime.graph=true has no effect on {run.device}; a CUDA device is needed.")
        loop.train()

    results = _evaluate(run, loop.progress, stages)
    results["speed/wall_seconds"] = earlier_seconds + time.monotonic() - run.started
    printing.summary(console, metrics_of(results), str(directory.path))
    # If the run was done and its results or its status are lost, the evaluators it was given later are called again.
    directory.ask({name: options for line in directory.evaluated() for name, options in line["eval"].items()})
    directory.evaluations_file.unlink(missing_ok=True)
    directory.write_results(results)
    run.loggers.finish(metrics_of(results), directory.tables)


def _evaluate(run: Run, progress: Progress, stages: StageResult) -> dict[str, Any]:
    """Evaluate the weights that the trainer chose; returns all results but the wall time."""
    epoch = progress.best_epoch if run.trainer.eval_weights == "best" else progress.epoch
    assert epoch is not None
    if run.trainer.eval_weights == "best":
        load_weights(run.directory.best_checkpoint, run.model)
    run.console.line(
        f"Best: epoch {progress.best_epoch}. Evaluated: {run.trainer.eval_weights} weights (epoch {epoch})."
    )
    line = progress.history[epoch - 1]
    results: dict[str, Any] = {
        **counts(run),
        **stages.metrics,
        **{name: line[name] for name in ("train/loss", "train/ppl", "val/loss", "val/ppl")},
        "val/best_ppl": progress.history[(progress.best_epoch or epoch) - 1]["val/ppl"],
        "val/best_epoch": progress.best_epoch or 0,
        "train/steps": progress.step,
        **({"train/skipped_steps": progress.skipped_steps} if run.precision == "fp16" else {}),
        "memory/peak_bytes": progress.peak_bytes or 0,
        "speed/train_tokens_per_second": progress.trained_tokens / max(progress.seconds, 1e-9),
    }
    evaluated = subject(run, stages.data)
    results |= {f"scored/{name}": evaluated.scored_rows for name in ("val/loss", "val/ppl")}
    for findings in evaluate(run.cfg.eval, evaluated):
        results |= findings.results
        _show(run, findings)
        run.signals.check()
    if lines := distance(run.cfg, results):
        body = for_console(lines)
        _show(
            run, Findings("Distance to the published run", tables={"reference": [one.row for one in lines]}, body=body)
        )
    return results


def _show(run: Run, findings: Findings) -> None:
    for name, rows in findings.tables.items():
        run.directory.write_table(name, rows)
    run.console.section(findings.title, findings.body)
