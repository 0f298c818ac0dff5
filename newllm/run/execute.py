"""One run from its configuration to its results: check, prepare, probe, first phase, train or resume, evaluate.

`steps` is the run as a generator, which leaves it to others to make its training steps: `run` does, one after
another, and newllm.pack those of several runs at once.
"""

import errno
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from omegaconf import DictConfig

from newllm.analysis.reference import findings as reference_findings
from newllm.build import build
from newllm.config import differences, effective, run_directory, signature
from newllm.console import Console
from newllm.data import Dataset
from newllm.errors import ConfigError, NewllmError, RunError
from newllm.evaluation import Findings, evaluate
from newllm.model import LanguageModel
from newllm.run.prepare import Prepared, judge, parameters, prepare
from newllm.store.environment import Before, before, describe
from newllm.store.run_directory import RunDirectory
from newllm.training import causality, display
from newllm.training.checkpoint import load_part, load_weights
from newllm.training.distributed import team
from newllm.training.loggers import Guarded
from newllm.training.loop import Loop, Steps, alone
from newllm.training.signals import Interrupted, Signals
from newllm.two_phase import Outcome, Work
from newllm.two_phase.context_token import ContextToken
from newllm.two_phase.contexts import Side
from newllm.two_phase.lines import leading_bytes
from newllm.two_phase.stored_contexts import FromContexts


def run(cfg: DictConfig) -> int:
    """Do the run of a composed configuration; returns the exit status.

    A finished run shows its stored results; one that broke off goes on where its last checkpoint is.

    Raises:
        ConfigError: before anything has been written; after it, only of a checkpoint that belongs to other data, and
            of a first phase without convergence.
        RunError: the run has failed; its status.json says so too.
    """
    with Signals().installed() as signals:
        return alone(steps(cfg, signals))


def steps(cfg: DictConfig, signals: Signals, beside: int = 0) -> Steps[int]:
    """`run` as a generator of the training steps that it wants made. beside: runs that train together with it."""
    began = time.monotonic()
    directory = RunDirectory(run_directory(cfg))
    _refuse_other_configuration(cfg, directory)
    console = Console(bar=cfg.runtime.progress and not beside)
    if directory.is_done():
        _show_stored(console, directory)
        return 0
    queued = directory.status().get("state") == "queued"
    try:
        begun = _begun(directory)
        prepared = prepare(cfg, threads=begun.threads if begun else None)
        with directory.locked():
            _refuse_other_configuration(cfg, directory)
            if directory.is_done():  # by another process, while this one prepared
                _show_stored(console, directory)
                return 0
            if queued and directory.status().get("state") == "interrupted":  # cancelled meanwhile
                raise Interrupted(signal.SIGTERM)
            yield from _attempt(prepared, directory, console, signals, began, beside, begun)
    except Interrupted as stop:
        console.line(f"{stop}. The same command goes on from here.", style="bold")
        return stop.exit_status
    finally:
        console.close_log()
    return 0


def _attempt(
    p: Prepared,
    directory: RunDirectory,
    console: Console,
    signals: Signals,
    began: float,
    beside: int,
    begun: Before | None,
) -> Steps[None]:
    """Train and evaluate in a directory that is ours; leaves the state done, interrupted or failed."""
    directory.write_config(effective(p.cfg))
    attempt = directory.begin_attempt()
    try:
        console.open_log(directory.log_file)
        logger = Guarded(build(p.cfg.logger, directory=directory.path), console.line)
        device_name = torch.cuda.get_device_name(p.device) if p.device.type == "cuda" else str(p.device)
        environment = describe(device=device_name, threads=p.runtime.threads, precision=p.precision)
        environment["compiled"] = begun.compiled if begun else False
        directory.write_environment(environment)
        directory.tokenizer.mkdir(exist_ok=True)
        p.data.tokenizer.save(directory.tokenizer)
        with team(p.trainer.devices, directory.path, p.device, p.runtime.threads, partial(_lost, directory)) as others:
            _header(p, directory, console)
            if beside:
                console.line(
                    f"Trains together with {beside} other run{'s' * (beside > 1)}; the times are of all of them."
                )
            row = p.data.val.batch(np.arange(1))[0][0].to(p.device)
            causality.check(p.model, row, p.precision)
            earlier_seconds = float(directory.status().get("stage_seconds") or 0.0)
            outcome = _stages(p, directory, console, signals, logger)
            model, data = _second(p, outcome)
            loop = Loop(
                p.trainer,
                p.optim,
                model,
                data,
                p.device,
                p.precision,
                directory,
                p.runtime,
                signals,
                console,
                logger,
                p.judge,
                signature(p.cfg),
                others,
                lines_before=leading_bytes(directory) if outcome else 0,
            )
            if loop.resume():
                console.line(f"Attempt {attempt}: goes on after step {loop.progress.step:,} of {loop.steps:,}.")
            plain = beside > 0 or p.trainer.devices > 1 or outcome is not None
            if not plain and loop.compile(begun.compiled if begun else p.runtime.compile):
                directory.write_environment({**environment, "compiled": True})
            yield from loop.train()
        results = _measure(p, directory, console, loop, outcome)
        results["speed/wall_seconds"] = earlier_seconds + loop.earlier_seconds + time.monotonic() - began
        logger.log(loop.progress.step, results)
        logger.close()
        display.summary(console, results, p.judge, str(directory.path))
        directory.write_results(results)
        directory.end_attempt("done")
    except (Interrupted, GeneratorExit):
        directory.end_attempt("interrupted")
        raise
    except BaseException as error:
        full = _full_disk(error, directory)
        with suppress(OSError):  # a full disk must not hide what went wrong
            if not isinstance(full or error, NewllmError):
                console.log_only(traceback.format_exc())
                directory.update_status(traceback=traceback.format_exc())
            directory.end_attempt("failed", error=str(full or error) or type(error).__name__)
        if full:
            raise full from error
        raise


def _stages(
    p: Prepared, directory: RunDirectory, console: Console, signals: Signals, logger: Guarded
) -> Outcome | None:
    """Do what comes before training, or take what is left of it from an earlier attempt; None without a first phase."""
    began, before = time.monotonic(), float(directory.status().get("stage_seconds") or 0.0)
    try:
        if p.stages.embeddings is not None:
            embedding = p.model.embed.weight
            if directory.last_checkpoint.exists() and not embedding.requires_grad:  # else it is another by now
                load_part(directory.last_checkpoint, "embed.weight", embedding)
            else:
                p.stages.embeddings.fill(p.model, p.data, p.cfg, p.runtime, console)
        if p.stages.phase is None:
            return None
        work = Work(p.cfg, p.model, p.data, p.device, p.precision, p.runtime, directory, console, signals, logger)
        outcome = p.stages.phase.run(work)
    finally:
        directory.update_status(stage_seconds=before + time.monotonic() - began)
    _show(console, directory, Findings("Phase 1", outcome.metrics, outcome.tables, outcome.body))
    console.title("Phase 2")
    return outcome


def _second(p: Prepared, outcome: Outcome | None) -> tuple[LanguageModel, Dataset]:
    """What the loop trains, and on which rows: of a model whose contexts are known by now, what reads them."""
    if outcome is None or outcome.contexts is None:
        return p.model, p.data
    assert isinstance(p.model, ContextToken)
    streams: dict[Side, np.ndarray] = {"train": p.data.stream("train"), "val": p.data.stream("val")}
    view = FromContexts(p.model, outcome.contexts, streams, p.device)
    return view, replace(p.data, train=view.rows("train"), val=view.rows("val"))


def _lost(directory: RunDirectory, reason: str) -> None:
    """Say why the run ends, in place of the main thread, which waits for a process that is no more."""
    directory.end_attempt("failed", error=reason)
    print(f"newllm: {reason}", file=sys.stderr, flush=True)


def _begun(directory: RunDirectory) -> Before | None:
    """What the attempt has settled whose checkpoint this run goes on from."""
    return before(directory.environment_file) if directory.last_checkpoint.exists() else None


def _full_disk(error: BaseException, directory: RunDirectory) -> RunError | None:
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return RunError(
        f"The disk of {directory.path} is full; the last checkpoint is whole, so make room and type the same command "
        "to go on"
    )


def _measure(
    p: Prepared, directory: RunDirectory, console: Console, loop: Loop, outcome: Outcome | None
) -> dict[str, float]:
    """Evaluate the weights that the trainer chose; returns all results but the wall time."""
    progress = loop.progress
    epoch = progress.best_epoch if p.trainer.eval_weights == "best" else progress.epoch
    assert epoch is not None
    if p.trainer.eval_weights == "best":
        load_weights(directory.best_checkpoint, p.model)
    console.line(f"Best: epoch {progress.best_epoch}. Evaluated: {p.trainer.eval_weights} weights (epoch {epoch}).")

    line = progress.history[epoch - 1]
    results: dict[str, float] = {
        **p.counts,
        **(outcome.metrics if outcome else {}),
        **{name: line[name] for name in ("train/loss", "train/ppl", "val/loss", "val/ppl")},
        "val/best_ppl": progress.history[(progress.best_epoch or epoch) - 1]["val/ppl"],
        "val/best_epoch": progress.best_epoch or 0,
        "train/steps": progress.step,
        "memory/peak_bytes": progress.peak_bytes or 0,
        "speed/train_tokens_per_second": progress.trained_tokens / max(progress.seconds, 1e-9),
    }
    for findings in evaluate(p.cfg.eval, p.subject(outcome.contexts if outcome else None)):
        results |= findings.metrics
        _show(console, directory, findings)
    published = reference_findings(p.cfg, results)
    if published is not None:
        _show(console, directory, published)
        results |= published.metrics
    return results


def _show(console: Console, directory: RunDirectory, findings: Findings) -> None:
    for name, rows in findings.tables.items():
        directory.write_table(name, rows)
    console.section(findings.title, findings.body)


def _header(p: Prepared, directory: RunDirectory, console: Console) -> None:
    display.header(
        console,
        p.cfg,
        directory=str(directory.path),
        data=p.data,
        trainer=p.trainer,
        device=p.device,
        precision=p.precision,
        threads=p.runtime.threads,
        parameters=parameters(p.model),
        steps=p.trainer.steps(len(p.data.train), p.data.train.seq_len)[1],
    )


def _show_stored(console: Console, directory: RunDirectory) -> None:
    results = directory.results()
    verdict = partial(judge, directory.config()["eval"], results["data/bytes_per_token"])
    console.line(f"This run is done: {directory.path} holds its results. Another seed makes another run (seed=…).")
    display.summary(console, results, verdict, str(directory.path))


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
