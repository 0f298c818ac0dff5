"""One run from its configuration to its results: check, prepare, probe, first phase, train or resume, evaluate."""

import errno
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from omegaconf import DictConfig

from newllm.analysis.published import distance, for_console
from newllm.build import build
from newllm.config import differences, effective, run_directory, signature
from newllm.config.groups import group_of
from newllm.config.values import check_values
from newllm.console import Console
from newllm.errors import ConfigError, NewllmError, RunError
from newllm.evaluation import Findings, evaluate, judge
from newllm.run.follower import follow
from newllm.run.prepare import counts, parameters, prepare, subject
from newllm.run.stage import StageResult, run_stages
from newllm.runtime import Place
from newllm.store.environment import Settled, describe, settled
from newllm.store.run_directory import RunDirectory
from newllm.training import causality, printing
from newllm.training.checkpoint import load_weights
from newllm.training.context import Run, StepMaker
from newllm.training.distributed import leading, team
from newllm.training.loggers import Guarded
from newllm.training.loop import Loop
from newllm.training.signals import Interrupted, Signals


def run(cfg: DictConfig, signals: Signals | None = None, packed: StepMaker | None = None) -> int:
    """Do the run of a composed configuration; returns the exit status.

    A finished run shows its stored results; one that broke off goes on from its last checkpoint.

    signals: those that stop it; by default those of the process. packed: makes its training steps with those of others.

    Raises:
        ConfigError: before anything has been written; after it, only of a checkpoint that belongs to other data, and
            of a first phase without convergence.
        RunError: the run has failed; its status.json says so too.
    """
    if signals is None:
        with Signals().installed() as of_process:
            place = Place.from_environment()
            if place.rank > 0:
                return follow(cfg, place)
            with leading(place):
                return run(cfg, of_process, packed)
    started = time.monotonic()
    check_values(cfg)
    directory = RunDirectory(run_directory(cfg))
    _refuse_other_configuration(cfg, directory)
    console = Console(bar=cfg.runtime.progress and packed is None)
    if directory.is_done():
        _show_stored(console, directory)
        return 0
    queued = directory.status().get("state") == "queued"
    try:
        earlier = settled(directory.environment_file) if directory.last_checkpoint.exists() else None
        this = prepare(cfg, threads=earlier.threads if earlier else None)
        this.console, this.signals, this.packed = console, signals, packed
        with directory.locked():
            _refuse_other_configuration(cfg, directory)
            if directory.is_done():  # by another process, while this one prepared
                _show_stored(console, directory)
                return 0
            if queued and directory.status().get("state") == "interrupted":  # cancelled meanwhile
                raise Interrupted(signal.SIGTERM)
            signals.check()
            with _attempt(this) as attempt:
                _train_and_evaluate(this, attempt, earlier, started)
    except Interrupted as stop:
        console.line(f"{stop}. The same command goes on from here.", style="bold")
        return stop.exit_status
    finally:
        console.close_log()
    return 0


def _train_and_evaluate(run: Run, attempt: int, earlier: Settled | None, started: float) -> None:
    directory, console = run.directory, run.console
    run.logger = Guarded(build(run.cfg.logger, directory=directory.path), console.line)
    device_name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else str(run.device)
    environment = describe(device=device_name, threads=run.runtime.threads, precision=run.precision)
    environment["compiled"] = earlier.compiled if earlier else False
    directory.write_environment(environment)
    directory.tokenizer.mkdir(exist_ok=True)
    run.data.tokenizer.save(directory.tokenizer)

    lost = partial(_end_for_lost_process, directory)
    with team(run, lost) as others:
        printing.header(run, parameters(run.model))
        if run.packed:
            several = f"{run.packed.others} other run{'s' * (run.packed.others > 1)}"
            console.line(f"Trains together with {several}; the times are of all of them.")
        row = run.data.val.batch(np.arange(1))[0][0].to(run.device)
        causality.check(run.model, row, run.precision)

        seconds_of_stages = float(directory.status().get("stage_seconds") or 0.0)
        stages = run_stages(run)
        data = stages.data or run.data
        loop = Loop(replace(run, model=run.model.model_for_rows(data), data=data), others, stages.metrics_bytes)
        if loop.resume():
            console.line(f"Attempt {attempt}: goes on after step {loop.progress.step:,} of {loop.steps:,}.")
        plain = (
            run.packed
            or run.trainer.devices > 1
            or any(group_of(stage, run.cfg).pack == "alone" for stage in run.stages)
        )
        if not plain and loop.compile(earlier.compiled if earlier else run.runtime.compile):
            directory.write_environment({**environment, "compiled": True})
        loop.train()

    results = _evaluate(run, loop, stages)
    results["speed/wall_seconds"] = seconds_of_stages + loop.earlier_seconds + time.monotonic() - started
    run.logger.log(loop.progress.step, results)
    run.logger.close()
    printing.summary(console, results, run.judge, str(directory.path))
    directory.write_results(results)


@contextmanager
def _attempt(run: Run) -> Iterator[int]:
    """An attempt at the run, in a directory that is ours; it ends done, interrupted or failed, and status.json says so.

    Gives the attempt's number.
    """
    directory = run.directory
    directory.write_config(effective(run.cfg))
    number = directory.begin_attempt()
    try:
        run.console.open_log(directory.log_file)
        yield number
        directory.end_attempt("done")
    except Interrupted:
        directory.end_attempt("interrupted")
        raise
    except BaseException as error:
        full = _full_disk(error, directory)
        with suppress(OSError):  # a full disk must not hide what went wrong
            if not isinstance(full or error, NewllmError):
                run.console.log_only(traceback.format_exc())
                directory.update_status(traceback=traceback.format_exc())
            directory.end_attempt("failed", error=str(full or error) or type(error).__name__)
        if full:
            raise full from error
        raise


def _end_for_lost_process(directory: RunDirectory, reason: str) -> None:
    """Say why the run ends, in place of the main thread, which waits for a process that has ended."""
    directory.end_attempt("failed", error=reason)
    print(f"newllm: {reason}", file=sys.stderr, flush=True)


def _full_disk(error: BaseException, directory: RunDirectory) -> RunError | None:
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return RunError(
        f"The disk of {directory.path} is full; the last checkpoint is whole, so make room and type the same command "
        "to go on"
    )


def _evaluate(run: Run, loop: Loop, stages: StageResult) -> dict[str, float]:
    """Evaluate the weights that the trainer chose; returns all results but the wall time."""
    progress = loop.progress
    epoch = progress.best_epoch if run.trainer.eval_weights == "best" else progress.epoch
    assert epoch is not None
    if run.trainer.eval_weights == "best":
        load_weights(run.directory.best_checkpoint, run.model)
    run.console.line(
        f"Best: epoch {progress.best_epoch}. Evaluated: {run.trainer.eval_weights} weights (epoch {epoch})."
    )
    line = progress.history[epoch - 1]
    results: dict[str, float] = {
        **counts(run),
        **stages.metrics,
        **{name: line[name] for name in ("train/loss", "train/ppl", "val/loss", "val/ppl")},
        "val/best_ppl": progress.history[(progress.best_epoch or epoch) - 1]["val/ppl"],
        "val/best_epoch": progress.best_epoch or 0,
        "train/steps": progress.step,
        "memory/peak_bytes": progress.peak_bytes or 0,
        "speed/train_tokens_per_second": progress.trained_tokens / max(progress.seconds, 1e-9),
    }
    for findings in evaluate(run.cfg.eval, subject(run, stages.data)):
        results |= findings.metrics
        _show(run, findings)
        run.signals.check()
    if lines := distance(run.cfg, results):
        body = for_console(lines)
        _show(run, Findings("Distance to the published run", tables={"reference": lines}, body=body))
    return results


def _show(run: Run, findings: Findings) -> None:
    for name, rows in findings.tables.items():
        run.directory.write_table(name, rows)
    run.console.section(findings.title, findings.body)


def _show_stored(console: Console, directory: RunDirectory) -> None:
    results = directory.results()
    verdict = partial(judge, directory.config()["eval"], results["data/bytes_per_token"])
    console.line(f"This run is done: {directory.path} holds its results. Another seed makes another run (seed=…).")
    printing.summary(console, results, verdict, str(directory.path))


def _refuse_other_configuration(cfg: DictConfig, directory: RunDirectory) -> None:
    stored = directory.config()
    if not stored or signature(stored) == signature(cfg):
        return
    found = differences(stored, cfg)
    listed = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    raise ConfigError(
        f"{directory.path} holds a run of another configuration ({listed}); give this run a directory of its own "
        "with hydra.run.dir=…, or leave that out to have one named for it"
    )
