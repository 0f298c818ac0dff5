"""Phase 1 by fixed-point iteration: train a recurrence on all tokens at once until their contexts stop moving."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from newllm.build import build
from newllm.checks import above, at_least, within
from newllm.data import Dataset
from newllm.data.disk_cache import cache_folder, key_of, locked
from newllm.effective_rank import SAMPLES, effective_rank
from newllm.errors import ConfigError, RunError, disk_is_full
from newllm.model import LanguageModel
from newllm.precision import Precision, autocast
from newllm.run.stage import Stage, StageResult
from newllm.seeding import stream
from newllm.store.atomic import remove
from newllm.store.intact import Damaged, is_file, read_json, write_json
from newllm.training.checkpoint import Progress, load_training, load_weights, read_header, save_training
from newllm.training.optimizer import AdamW, lower_rate
from newllm.training.run_context import Run
from newllm.two_phase import phase_folder
from newllm.two_phase.first_phase import Line, finish_phase, seconds_of_last, update_progress, write_lines
from newllm.two_phase.objectives import Objective
from newllm.two_phase.recurrence import Piece, Recurrence
from newllm.two_phase.stored_contexts import (
    Text,
    append,
    parallel_contexts,
    previous_contexts,
    true_contexts,
    with_contexts,
    write_contexts,
)  # fmt: skip

_NAME = "fixed_point"
_HEADING = f"{'iteration':>9}  {'loss':>9}  {'bound':>9}  {'of bound':>8}  {'converged':>9}  {'time':>7}"


class FixedPoint(Stage):
    """Trains ``c_t = f(c_{t-1}, u_t)`` without backpropagation through time, then freezes f.

    Iteration 1 draws contexts c_t ~ N(0, start_std^2) for all N tokens of the training text. Each later iteration
    computes ``out_t = f(previous_{t-1} + noise * N(0, 1), u_t)`` for all t at once, with no gradient through
    `previous`, minimises an objective of out_t and previous_t by Adam on f's parameters alone, and takes `out`
    (computed before the step, with its noise) as the next `previous`. A context has converged if its mean square
    change over its dims is below `threshold`. The iteration ends once the share `stop` of the contexts has converged,
    after at least `least` iterations.

    It then stores the contexts of all layers for a model that reads them: for the training text by one more parallel
    pass without new noise (token 0 from zeros), for the validation text by the true recurrence from zeros. A model that
    runs its recurrence itself needs no stored contexts.

    Source: the context/token experiments of rato-tokyo/new-llm (src/trainers/phase1/memory.py, 29 November 2025), with
    one step of Adam per iteration.

    Cost: an iteration is one forward and one backward pass of f over N tokens. Memory: one batch. Disk: 2 * N * C * 4
    bytes while it iterates, N * L * C * 4 (bf16: 2) for the stored contexts, in the cache folder, shared by all runs
    with the same first phase.

    Args:
        lr: Adam's rate (betas 0.9 and 0.999, eps 1e-8, no decay) per iteration, constant. steps="batch" divides it by
            the steps of an iteration: otherwise f would move faster on longer texts than its contexts can follow.
        iterations: the maximum, counting the random contexts as the first.
        least: the minimum.
        noise: standard deviation of the noise added to the contexts that f reads.
        batch_tokens: consecutive tokens per batch of the objective; the scale of a diversity term depends on it.
        clip: maximum gradient norm; None: no clipping.
        threshold: mean square change below which a context has converged.
        stop: share of converged contexts that ends the iteration.
        steps: "pass": one optimizer step per iteration, on the mean gradient of its batches, as published. "batch": one
            step per batch, so that larger batches do not shorten training. "none": f is not trained, the control for
            what its training is worth.
        start_std: standard deviation of the random contexts.
        wrap: the first token reads the last one's context, as published; otherwise zeros.
        train_norms: also train the gains and shifts of f's norms, as published. A diversity term then keeps falling
            below its bound as the contexts grow, which a few steps do not show; False keeps their norm at sqrt(C).
        train_contexts: the stored contexts of the training text: "parallel", as published, which leaves the iteration's
            noise in them, or "sequential", by the true recurrence, like those of the validation text.
        freeze_embedding: freeze the embedding and its norm with f, so that f's inputs stay the same. No effect if the
            embedding is frozen anyway.
        require_convergence: stop the run if the iteration ends before the share `stop` has converged.
        folder: where the files of the phase are kept; None: a folder in the cache, keyed by all that determines the
            result, the device and the thread count included.
        objective: node of the objective (newllm.two_phase.objectives).
        seed: of the random contexts and of the noise.
    """

    def __init__(
        self,
        lr: float = 2e-3,
        iterations: int = 40,
        least: int = 5,
        noise: float = 0.1,
        batch_tokens: int = 8000,
        clip: float | None = 1.0,
        threshold: float = 0.03,
        stop: float = 0.99,
        steps: Literal["pass", "batch", "none"] = "pass",
        start_std: float = 0.01,
        wrap: bool = True,
        train_norms: bool = True,
        train_contexts: Literal["parallel", "sequential"] = "parallel",
        freeze_embedding: bool = False,
        require_convergence: bool = True,
        folder: str | None = None,
        *,
        objective: Mapping[str, Any] | None,
        seed: int,
    ) -> None:
        if not objective:
            raise ConfigError("this first phase needs an objective to train on; type objective=mcdl.")
        above("phase1.lr", lr, 0, 2e-3)
        at_least("phase1.iterations", iterations, 2, 40)
        within("phase1.least", least, 1, iterations, min(5, iterations))
        at_least("phase1.noise", noise, 0, 0.1)
        at_least("phase1.batch_tokens", batch_tokens, 1, 8000)
        above("phase1.clip", 1 if clip is None else clip, 0, 1)
        above("phase1.threshold", threshold, 0, 0.03)
        above("phase1.stop", stop, 0, 0.99)
        within("phase1.stop", stop, 0, 1, 0.99)
        at_least("phase1.start_std", start_std, 0, 0.01)
        self.lr, self.clip, self.steps, self.train_norms = lr, clip, steps, train_norms
        self.noise, self.start_std, self.wrap, self.batch_tokens = noise, start_std, wrap, batch_tokens
        self.iterations, self.least, self.threshold, self.stop = iterations, least, threshold, stop
        self.train_contexts, self.freeze_embedding = train_contexts, freeze_embedding
        self.require_convergence = require_convergence
        self.folder = None if folder is None else Path(folder).expanduser()
        self.objective = build(objective, Objective)
        self.seed = seed

    def check(self, cfg: DictConfig, model: LanguageModel, data: Dataset) -> None:
        choices = cfg.get("choices") or {}
        phase = f"phase1={choices.get('phase1', 'published')}"
        if not isinstance(getattr(model, "recurrence", None), Recurrence):
            raise ConfigError(
                f"{phase} needs a model with a recurrence, as model=context_token; this run has "
                f"model={choices.get('model', type(model).__name__)}, so type phase1=none."
            )
        tokens = data.stream("train")
        if len(tokens) < 2:
            raise ConfigError(f"{phase} needs a training text of at least 2 tokens; this one has {len(tokens)}.")
        for side in phase_folder.texts_to_store(model):
            data.stream(side)  # raises ConfigError if its rows are scattered
        if self.folder is not None:
            phase_folder.check(self.folder, phase_folder.content_of_options(cfg))

    def run(self, run: Run) -> StageResult:
        content = phase_folder.content_of(run, same_machine=self.folder is None)
        folder = self.folder or cache_folder(run.runtime) / "phase1" / key_of(**content)
        with locked(folder, "first phase"):
            try:
                phase_folder.claim(folder, content)
            except ConfigError as error:
                if self.folder is not None:
                    raise
                # The folder's name in the cache is the hash of `content`, so it can hold nothing else.
                run.console.line(f"{folder} is damaged ({str(error).partition(';')[0]}), so phase 1 is repeated.")
                remove(folder)
                phase_folder.claim(folder, content)
            try:
                progress = self._load_or_train(run, folder)
            except Exception as error:
                if disk_is_full(error):
                    raise RunError(
                        f"no space left for {folder}; free some, or type runtime.cache_dir=FOLDER: the same command "
                        "goes on from the last iteration."
                    ) from error
                raise
            metrics = read_json(folder / phase_folder.OUTCOME) or {}
            stored = phase_folder.stored_contexts(run, folder)
        if self.freeze_embedding:
            for name in ("embed", "embed_norm"):
                run.model.get_submodule(name).requires_grad_(False)
        if self.require_convergence and not metrics["phase1/reached"]:
            raise ConfigError(
                f"Phase 1 stopped after {metrics['phase1/iterations']:.0f} iterations with "
                f"{metrics['phase1/converged']:.2%} of the contexts converged, and phase1.stop is {self.stop:.2%}; "
                "go on as it is with phase1.require_convergence=false (its result is kept and will be used), or give "
                f"it more with phase1.iterations={2 * self.iterations}."
            )
        reached = "reached its fixed point" if metrics["phase1/reached"] else "stopped without a fixed point"
        model: Any = run.model
        tokens, width, rank = len(run.data.stream("train")), model.recurrence.width, metrics["context/rank@train"]
        size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
        text = [
            f"Phase 1 {reached}: {metrics['phase1/converged']:.1%} of {tokens:,} contexts converged after "
            f"{metrics['phase1/iterations']:.0f} iterations ({metrics['phase1/steps']:,.0f} optimizer steps).",
            f"Effective rank of the training contexts: {rank:,.1f} of {width:,} dims, {rank / width:.1%} (of the last "
            f"iteration, with its noise; {min(tokens, SAMPLES):,} contexts, not centred).",
            f"On disk: {size:,.1f} MiB in {folder}.",
        ]
        data = with_contexts(run.data, model.num_input_tokens, **stored) if stored else None
        return finish_phase(run, metrics, progress.history, text, data)

    def _load_or_train(self, run: Run, folder: Path) -> Progress:
        """Bring the weights of the phase into the model and its files into `folder`, whose lock is held.

        Trains what is not done yet, and all of it if a file is damaged. An epoch of the returned Progress is an
        iteration.
        """
        recurrence: Recurrence = run.model.recurrence  # type: ignore[assignment]
        run.console.line()
        text = Text(run.model, run.data.stream("train"), run.device)
        iteration = Iteration(self, recurrence, text, run.precision, folder)
        try:
            done = _is_done(run, iteration)
        except Damaged as error:
            run.console.line(f"{str(error).partition(';')[0]}, so phase 1 is repeated.")
            phase_folder.clear(folder)
            done = False
        if done:
            run.console.line(f"Phase 1 has been done before: taken from {folder}.")
            progress = Progress(**load_weights(folder / phase_folder.STATE, recurrence)["progress"])
            _show(run, progress)
        else:
            with run.signals.deferred():
                progress = self._iterate(run, iteration)
                recurrence.requires_grad_(False)
                self._store(run, iteration, progress)
        recurrence.requires_grad_(False)
        return progress

    def _iterate(self, run: Run, iteration: "Iteration") -> Progress:
        """Run the remaining iterations. Each writes its contexts, then the checkpoint, then its line."""
        progress, state, began = Progress(), iteration.folder / phase_folder.STATE, time.monotonic()
        if state.exists():
            progress = load_training(state, iteration.recurrence, iteration.optimizer, {})
            began -= progress.seconds
        resumed = f"; goes on after iteration {progress.epoch}" if progress.epoch > 1 else ""
        run.console.line(
            f"Phase 1: {len(iteration.text):,} contexts by fixed-point iteration, at most {self.iterations} "
            f"iterations, until {self.stop:.0%} stay within {self.threshold:g}{resumed}."
        )
        if not progress.epoch:
            iteration.draw_start()
            progress.epoch, progress.seconds = 1, time.monotonic() - began
            save_training(state, iteration.recurrence, iteration.optimizer, progress, {})
        _show(run, progress)
        while progress.epoch < self.iterations and not (progress.epoch >= self.least and self._converged(progress)):
            update_progress(run, _NAME, progress.epoch, self.iterations, progress.history)
            since = time.monotonic()
            with run.console.progress(len(iteration.pieces), 0) as bar:

                def after_batch(batch: int, loss: float, bar: Any = bar, since: float = since) -> None:
                    run.signals.check()
                    bar(batch, loss, batch * self.batch_tokens / max(time.monotonic() - since, 1e-9))

                means = iteration.run(progress.epoch + 1, after_batch)
            values = {f"phase1/{name}": value for name, value in means.items()}
            progress.epoch, progress.step = progress.epoch + 1, progress.step + iteration.steps
            progress.seconds = time.monotonic() - began
            line = {"phase": _NAME, "iteration": progress.epoch, **values, "time/seconds": progress.seconds}
            progress.history.append(line)
            save_training(state, iteration.recurrence, iteration.optimizer, progress, {})
            write_lines(run.directory, progress.history)
            run.console.line(_iteration_line(progress.history))
        update_progress(run, _NAME, progress.epoch, self.iterations, progress.history)
        return progress

    def _converged(self, progress: Progress) -> bool:
        """Whether enough contexts had converged after the last iteration."""
        return bool(progress.history) and bool(progress.history[-1]["phase1/converged"] >= self.stop)

    def _store(self, run: Run, iteration: "Iteration", progress: Progress) -> None:
        """Store the contexts that the second phase reads, then the metrics; remove the iteration's contexts."""
        began, previous = time.monotonic(), iteration.contexts(progress.epoch)
        stored = phase_folder.stored_contexts(run, iteration.folder)
        for side, name in phase_folder.texts_to_store(run.model).items():
            if side in stored:
                continue
            text, since = Text(run.model, run.data.stream(side), run.device), time.monotonic()
            if side == "train" and self.train_contexts == "parallel":
                pieces = parallel_contexts(iteration.recurrence, text, previous, self.batch_tokens, run.precision)
            else:
                pieces = true_contexts(iteration.recurrence, text, run.precision)
            path, shape = phase_folder.contexts_file(run, iteration.folder, side)
            write_contexts(path, shape, _until_stopped(run, pieces), run.precision)
            phase_folder.add_hash(path)
            size, seconds = path.stat().st_size / 2**20, time.monotonic() - since
            run.console.line(
                f"Contexts of the {name} text stored: {shape[0]:,} tokens, {shape[1]} layers, {shape[2]:,} wide; "
                f"{size:,.1f} MiB, {seconds:.1f} s."
            )
        rank = effective_rank(previous, seed=self.seed)
        metrics = {
            "phase1/iterations": progress.epoch,
            "phase1/steps": progress.step,
            **{key: value for key, value in progress.history[-1].items() if key.startswith("phase1/")},
            "phase1/reached": float(self._converged(progress)),
            "context/rank@train": rank,
            "context/rank_share@train": rank / previous.shape[1],
            "speed/phase1_seconds": progress.seconds + time.monotonic() - began,
        }
        write_json(iteration.folder / phase_folder.OUTCOME, metrics)
        iteration.remove_contexts()


def _is_done(run: Run, iteration: "Iteration") -> bool:
    """Whether the phase is done. Raises Damaged if a file that it, or its next iteration, relies on is not whole."""
    folder = iteration.folder
    outcome, stored = read_json(folder / phase_folder.OUTCOME), phase_folder.stored_contexts(run, folder)
    if outcome is None and not is_file(folder / phase_folder.STATE):
        return False
    progress = Progress(**read_header(folder / phase_folder.STATE)["progress"])
    if outcome is None:
        phase_folder.require_hash(iteration.file(progress.epoch))
    elif missing := phase_folder.texts_to_store(run.model).keys() - stored.keys():
        raise Damaged(phase_folder.contexts_file(run, folder, min(missing))[0], "is missing")
    return outcome is not None


def _until_stopped(run: Run, pieces: Iterator[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        run.signals.check()
        yield piece


def _show(run: Run, progress: Progress) -> None:
    """Write and print the lines of the iterations that are done."""
    write_lines(run.directory, progress.history)
    run.console.line(_HEADING, style="bold")
    for number in range(1, len(progress.history) + 1):
        run.console.line(_iteration_line(progress.history[:number], clock=False))


def _iteration_line(lines: Sequence[Line], clock: bool = True) -> str:
    """Console line of the last iteration. clock: with the seconds it took."""
    line = lines[-1]
    loss, bound = line["phase1/loss"], line["phase1/bound"]
    seconds = f"{seconds_of_last(lines):.1f} s" if clock else ""
    share = f"{loss / bound:.0%}" if bound and loss < 0 else ""  # the first losses are above 0
    shown = f"{line['iteration']:>9}  {loss:>9.4f}  {bound:>9.4f}  {share:>8}  {line['phase1/converged']:>9.0%}"
    return f"{shown}  {seconds:>7}".rstrip()


class Iteration:
    """Unfreezes a recurrence and trains it by the options of `phase`, one pass over the whole text at a time.

    Two files of contexts [N, C], fp32, are used in turns, so that a killed iteration leaves those of the last one
    intact. All random numbers follow from (seed, iteration, batch).
    """

    def __init__(
        self, phase: FixedPoint, recurrence: Recurrence, text: Text, precision: Precision, folder: Path
    ) -> None:
        self.phase, self.recurrence, self.text = phase, recurrence, text
        self.precision, self.folder = precision, folder
        self.pieces = text.pieces(phase.batch_tokens)
        self.steps = {"pass": 1, "batch": len(self.pieces), "none": 0}[phase.steps]  # of the optimizer
        recurrence.requires_grad_(True)
        if not phase.train_norms:
            for module in recurrence.modules():
                if isinstance(module, nn.LayerNorm):
                    module.requires_grad_(False)
        self.parameters = [p for p in recurrence.parameters() if p.requires_grad]
        # Adam moves a parameter by about the rate per step, and contexts lag behind parameters within an iteration.
        rate = phase.lr / max(1, self.steps)
        adam = AdamW(rate, betas=[0.9, 0.999], weight_decay=0.0, clip=phase.clip, schedule="constant")
        self.optimizer = adam.optimizer(recurrence)

    def contexts(self, iteration: int) -> np.memmap:
        """The last layer's contexts [N, C] of `iteration`, with its noise."""
        return np.memmap(self.file(iteration), np.float32, "r", shape=(len(self.text), self.recurrence.width))

    def draw_start(self) -> None:
        """Iteration 1: draw random contexts from N(0, start_std^2)."""
        with self.file(1).open("wb", buffering=0) as file:
            for batch, (start, stop) in enumerate(self.pieces):
                append(file, self._normal(stop - start, "start", batch) * self.phase.start_std)
            os.fsync(file.fileno())
        phase_folder.add_hash(self.file(1))

    def run(self, iteration: int, after_batch: Callable[[int, float], None]) -> dict[str, float]:
        """Run iteration 2, 3, …; returns loss and its bound (means over tokens) and the share of converged contexts.

        after_batch: called with the number of batches done and the mean loss so far.
        """
        device, phase = self.text.device, self.phase
        previous = self.contexts(iteration - 1)
        first = np.array(previous[-1]) if phase.wrap else np.zeros(previous.shape[1], np.float32)
        loss, bound, converged = 0.0, 0.0, 0
        with self.file(iteration).open("wb", buffering=0) as file:
            for batch, (start, stop) in enumerate(self.pieces):
                size = stop - start
                context = torch.from_numpy(previous_contexts(previous, start, stop, first)).to(device)
                context += phase.noise * self._normal(size, "noise", iteration, batch)
                before = torch.from_numpy(np.array(previous[start:stop])).to(device)
                with torch.set_grad_enabled(phase.steps != "none"):
                    with autocast(device, self.precision):
                        out = self.recurrence(context, self.text(start, stop))[:, -1].float()
                    value = phase.objective(out, before)
                if phase.steps != "none":
                    (value / len(self.pieces) if phase.steps == "pass" else value).backward()
                if phase.steps == "batch":
                    self._step()
                out, batch_loss = out.detach(), value.item()
                if not math.isfinite(batch_loss):
                    raise RunError(
                        f"Phase 1 diverged in iteration {iteration}: the loss is {batch_loss:g}; a lower rate "
                        f"(phase1.lr={lower_rate(phase.lr):g}) or phase1.clip=1.0 usually helps, in a new run."
                    )
                append(file, out)
                loss += size * batch_loss
                bound += size * phase.objective.bound(size, out.shape[1])
                converged += int(((out - before).square().mean(dim=1) < phase.threshold).sum())
                after_batch(batch + 1, loss / stop)
            os.fsync(file.fileno())
        phase_folder.add_hash(self.file(iteration))
        if phase.steps == "pass":
            self._step()
        count = len(self.text)
        return {"loss": loss / count, "bound": bound / count, "converged": converged / count}

    def remove_contexts(self) -> None:
        """Remove both files of contexts."""
        for iteration in (0, 1):
            self.file(iteration).unlink(missing_ok=True)

    def file(self, iteration: int) -> Path:
        """The file of the contexts of an iteration."""
        return self.folder / f"previous.{iteration % 2}.bin"

    def _step(self) -> None:
        if self.phase.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.phase.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _normal(self, count: int, *name: Any) -> Tensor:
        generator = torch.Generator(self.text.device).manual_seed(stream(self.phase.seed, "phase1", *name))
        return torch.randn(count, self.recurrence.width, generator=generator, device=self.text.device)
