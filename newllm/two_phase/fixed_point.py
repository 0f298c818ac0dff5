"""Phase 1 by fixed-point iteration: train a recurrence on all tokens at once until their contexts stop moving."""

import errno
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from newllm.build import build
from newllm.data import Dataset
from newllm.data.cache import cache_folder, key_of, locked
from newllm.effective_rank import SAMPLES, effective_rank
from newllm.errors import ConfigError, RunError
from newllm.model import LanguageModel
from newllm.store.atomic import write_json
from newllm.training.checkpoint import load_training, load_weights, save_training
from newllm.training.context import Run
from newllm.training.progress import Progress
from newllm.two_phase import phase_folder
from newllm.two_phase.context_rows import with_contexts
from newllm.two_phase.contexts import Text, open_contexts, parallel_contexts, true_contexts, write_contexts
from newllm.two_phase.first_phase import FirstPhase, Outcome, seconds_of, write_lines
from newllm.two_phase.iteration import Iteration, Rule, remove_contexts
from newllm.two_phase.recurrence import Piece, Recurrence

Side = Literal["train", "val"]

_HEADING = f"{'iteration':>9}  {'loss':>9}  {'bound':>9}  {'of bound':>8}  {'converged':>9}  {'time':>7}"
_NAMES = {"train": "training", "val": "validation"}


class FixedPoint(FirstPhase):
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

    name = "fixed_point"

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
        for holds, message in (
            (lr > 0, f"phase1.lr must be above 0; {lr:g} was given, try phase1.lr=2e-3"),
            (iterations >= 2, f"phase1.iterations must be at least 2; {iterations} was given, try 40"),
            (1 <= least <= iterations, f"phase1.least must be from 1 to phase1.iterations={iterations}; {least} was "
                                       f"given, try phase1.least={min(5, iterations)}"),
            (noise >= 0, f"phase1.noise must be at least 0; {noise:g} was given, try phase1.noise=0.1"),
            (start_std >= 0, f"phase1.start_std must be at least 0; {start_std:g} was given, try 0.01"),
            (batch_tokens >= 1, f"phase1.batch_tokens must be at least 1; {batch_tokens} was given, try 8000"),
            (clip is None or clip > 0, f"phase1.clip must be above 0, or null for none; {clip} was given"),
            (threshold > 0, f"phase1.threshold must be above 0; {threshold:g} was given, try phase1.threshold=0.03"),
            (0 < stop <= 1, f"phase1.stop is a share above 0 and at most 1; {stop:g} was given, try phase1.stop=0.99"),
            (bool(objective), "this first phase needs an objective to train on; type objective=mcdl"),
        ):  # fmt: skip
            if not holds:
                raise ConfigError(message)
        self.rule = Rule(lr, noise, batch_tokens, clip, threshold, steps, start_std, wrap, train_norms)
        self.iterations, self.least, self.stop = iterations, least, stop
        self.train_contexts, self.require_convergence = train_contexts, require_convergence
        self.freeze_embedding = freeze_embedding
        self.folder = None if folder is None else Path(folder).expanduser()
        self.node = dict(objective or {})
        self.objective = build(self.node)
        self.seed = seed

    def check(self, cfg: DictConfig, model: LanguageModel, data: Dataset) -> None:
        chosen = cfg.get("choices") or {}
        phase = f"phase1={chosen.get('phase1', 'published')}"
        if not isinstance(getattr(model, "recurrence", None), Recurrence):
            raise ConfigError(
                f"{phase} needs a model with a recurrence, as model=context_token; this run has "
                f"model={chosen.get('model', type(model).__name__)}, so type phase1=none"
            )
        tokens = data.stream("train")
        if len(tokens) < 2:
            raise ConfigError(f"{phase} needs a training text of at least 2 tokens, and there is {len(tokens)}")
        if reads_contexts(model):
            data.stream("val")
        if self.folder is not None:
            phase_folder.refuse_other(self.folder, self._settings(cfg))

    def train(self, run: Run) -> Outcome:
        content = self._content(run)
        folder = self.folder or cache_folder(run.runtime) / "phase1" / key_of(**content)
        with locked(folder, "first phase"):
            phase_folder.claim(folder, content)
            try:
                outcome = _PhaseRunner(self, run, folder).load_or_train()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise RunError(
                        f"no space left for {folder}; free some, or type runtime.cache_dir=FOLDER: the same command "
                        "goes on from the last iteration"
                    ) from error
                raise
        if self.freeze_embedding:
            for name in ("embed", "embed_norm"):
                run.model.get_submodule(name).requires_grad_(False)
        if self.require_convergence and not outcome.metrics["phase1/reached"]:
            raise ConfigError(
                f"Phase 1 stopped after {outcome.metrics['phase1/iterations']:.0f} iterations with "
                f"{outcome.metrics['phase1/converged']:.2%} of the contexts converged, and {self.stop:.2%} are asked; "
                "go on as it is with phase1.require_convergence=false (its result is kept and will be used), or give "
                f"it more with phase1.iterations={2 * self.iterations}"
            )
        return outcome

    def converged(self, progress: Progress) -> bool:
        """Whether enough contexts had converged after the last iteration."""
        return bool(progress.history) and bool(progress.history[-1]["phase1/converged"] >= self.stop)

    def _settings(self, cfg: DictConfig) -> phase_folder.Content:
        """What the configuration says about the result of this phase."""
        options = {
            **asdict(self.rule), "iterations": self.iterations, "least": self.least, "stop": self.stop,
            "train_contexts": self.train_contexts, "seed": self.seed, "rule": phase_folder.RULE,
        }  # fmt: skip
        model = OmegaConf.to_container(cfg.model, resolve=True)
        return phase_folder.plain({"model": model, "objective": self.node, "phase1": options})

    def _content(self, run: Run) -> phase_folder.Content:
        """Everything that determines the result of this phase."""
        streams = {side: run.data.stream(side) for side in _sides(run.model)}
        content = self._settings(run.cfg)
        for side, tokens in streams.items():
            content[side] = {"tokens": len(tokens), "sha256": phase_folder.digest_of_tokens(tokens)}
        content["embeddings"] = {"sha256": phase_folder.digest_of_weights(run.model.embed.weight)}
        content["arithmetic"] = {"precision": run.precision}
        if self.folder is None:  # a named folder may come from another machine
            threads = {"threads": torch.get_num_threads()} if run.device.type == "cpu" else {}
            content["arithmetic"] |= {"device": run.device.type, **threads}
        return content


def reads_contexts(model: torch.nn.Module) -> bool:
    """Whether the model's second phase reads stored contexts, rather than running its recurrence itself."""
    return hasattr(model, "read")


def _sides(model: torch.nn.Module) -> tuple[Side, ...]:
    """The texts whose contexts the phase computes."""
    return ("train", "val") if reads_contexts(model) else ("train",)


class _PhaseRunner:
    """Runs the phase in its folder, whose lock is held: iterates, then stores the contexts. Resumes where it stopped.

    Write order of an iteration: its contexts, the checkpoint, its line in metrics.jsonl.
    """

    def __init__(self, phase: FixedPoint, run: Run, folder: Path) -> None:
        self.phase, self.run, self.folder = phase, run, folder
        self.recurrence: Recurrence = run.model.recurrence  # type: ignore[assignment]
        self.texts = {side: Text(run.model, run.data.stream(side), run.device) for side in _sides(run.model)}
        self.state_file, self.outcome_file = folder / "state.safetensors", folder / "outcome.json"

    def load_or_train(self) -> Outcome:
        """The outcome of the phase, with its weights in the model; trains what is not done yet."""
        run, console = self.run, self.run.console
        console.line()
        complete = self.state_file.exists() and (len(self._stored()) == 2 or not reads_contexts(run.model))
        if self.outcome_file.exists() and not complete:  # a part was deleted, and the iteration's contexts are gone
            self.outcome_file.unlink()
            self.state_file.unlink(missing_ok=True)
        if self.outcome_file.exists():
            console.line(f"Phase 1 has been done before: taken from {self.folder}.")
            console.line(_HEADING, style="bold")
            progress = Progress(**load_weights(self.state_file, self.recurrence)["progress"])
            self._show(progress)
            self.recurrence.requires_grad_(False)
        else:
            with run.signals.deferred():
                progress = self._train()
        metrics = json.loads(self.outcome_file.read_text(encoding="utf-8"))
        reached = "reached its fixed point" if metrics["phase1/reached"] else "stopped without a fixed point"
        tokens, width, rank = len(self.texts["train"]), self.recurrence.width, metrics["context/rank@train"]
        size = sum(path.stat().st_size for path in self.folder.iterdir()) / 2**20
        text = [
            f"Phase 1 {reached}: {metrics['phase1/converged']:.1%} of {tokens:,} contexts converged after "
            f"{metrics['phase1/iterations']:.0f} iterations ({metrics['phase1/steps']:,.0f} optimizer steps).",
            f"Effective rank of the training contexts: {rank:,.1f} of {width:,} dims, {rank / width:.1%} (of the last "
            f"iteration, with its noise; {min(tokens, SAMPLES):,} contexts, not centred).",
            f"On disk: {size:,.1f} MiB in {self.folder}.",
        ]
        stored = self._stored()
        data = with_contexts(run.data, stored["train"], stored["val"]) if len(stored) == 2 else None
        return Outcome(metrics, progress.history, text, data)

    def _train(self) -> Progress:
        phase, run = self.phase, self.run
        iteration = Iteration(
            phase.rule, phase.objective, self.recurrence, self.texts["train"], run.precision, phase.seed
        )
        progress = self._iterate(iteration)
        self.recurrence.requires_grad_(False)
        began = time.monotonic()
        previous = iteration.contexts(self.folder, progress.epoch)
        if reads_contexts(run.model):
            for side in self.texts:
                self._store(side, previous)
        rank = effective_rank(previous, seed=phase.seed)
        metrics = {
            "phase1/iterations": progress.epoch,
            "phase1/steps": progress.step,
            **{key: value for key, value in progress.history[-1].items() if key.startswith("phase1/")},
            "phase1/reached": float(phase.converged(progress)),
            "context/rank@train": rank,
            "context/rank_share@train": rank / previous.shape[1],
            "speed/phase1_seconds": progress.seconds + time.monotonic() - began,
        }
        write_json(self.outcome_file, metrics)
        remove_contexts(self.folder)
        return progress

    def _iterate(self, iteration: Iteration) -> Progress:
        """Run the remaining iterations. An epoch of the returned Progress is an iteration."""
        phase, run, began = self.phase, self.run, time.monotonic()
        progress = Progress()
        if self.state_file.exists():
            progress = load_training(self.state_file, self.recurrence, iteration.optimizer, {})
            began -= progress.seconds
        resumed = f"; goes on after iteration {progress.epoch}" if progress.epoch > 1 else ""
        run.console.line(
            f"Phase 1: {len(iteration.text):,} contexts by fixed-point iteration, at most {phase.iterations} "
            f"iterations, until {phase.stop:.0%} stay within {phase.rule.threshold:g}{resumed}."
        )
        run.console.line(_HEADING, style="bold")
        if not progress.epoch:
            iteration.draw_start(self.folder)
            progress.epoch, progress.seconds = 1, time.monotonic() - began
            save_training(self.state_file, self.recurrence, iteration.optimizer, progress, {})
        self._show(progress)
        while progress.epoch < phase.iterations and not (progress.epoch >= phase.least and phase.converged(progress)):
            phase.report(run, progress.epoch, phase.iterations, progress.history)
            number, since = progress.epoch + 1, time.monotonic()
            with run.console.progress(len(iteration.pieces), 0) as bar:

                def after_batch(batch: int, loss: float, bar: Any = bar, since: float = since) -> None:
                    run.signals.check()
                    bar(batch, loss, batch * phase.rule.batch_tokens / max(time.monotonic() - since, 1e-9))

                result = iteration.run(self.folder, number, after_batch)
            progress.epoch, progress.step = number, progress.step + result.steps
            progress.seconds = time.monotonic() - began
            numbers = {"phase1/loss": result.loss, "phase1/bound": result.bound, "phase1/converged": result.converged}
            line = {"phase": phase.name, "iteration": number, **numbers, "time/seconds": progress.seconds}
            progress.history.append(line)
            save_training(self.state_file, self.recurrence, iteration.optimizer, progress, {})
            write_lines(run.directory, progress.history)
            run.logger.log(number, numbers)
            run.console.line(_iteration_line(progress.history))
        phase.report(run, progress.epoch, phase.iterations, progress.history)
        return progress

    def _show(self, progress: Progress) -> None:
        """Write and print the lines of the iterations that are done."""
        write_lines(self.run.directory, progress.history)
        for number in range(1, len(progress.history) + 1):
            self.run.console.line(_iteration_line(progress.history[:number], clock=False))

    def _store(self, side: Side, previous: np.ndarray) -> None:
        """Store the contexts of all layers: from the last iteration's contexts, or by the true recurrence."""
        if side in self._stored():
            return
        text, precision, since = self.texts[side], self.run.precision, time.monotonic()
        if side == "train" and self.phase.train_contexts == "parallel":
            pieces = parallel_contexts(self.recurrence, text, previous, self.phase.rule.batch_tokens, precision)
        else:
            pieces = true_contexts(self.recurrence, text, precision)

        def pieces_until_stopped() -> Iterator[Piece]:
            for piece in pieces:
                self.run.signals.check()
                yield piece

        path, shape = self._file(side)
        write_contexts(path, shape, pieces_until_stopped(), precision)
        size, seconds = path.stat().st_size / 2**20, time.monotonic() - since
        self.run.console.line(
            f"Contexts of the {_NAMES[side]} text stored: {shape[0]:,} tokens, {shape[1]} layers, {shape[2]:,} wide; "
            f"{size:,.1f} MiB, {seconds:.1f} s."
        )

    def _stored(self) -> dict[Side, torch.Tensor]:
        """The contexts on disk, by side."""
        found = {side: open_contexts(*self._file(side), self.run.precision) for side in self.texts}
        return {side: contexts for side, contexts in found.items() if contexts is not None}

    def _file(self, side: Side) -> tuple[Path, tuple[int, int, int]]:
        """The file of a side's contexts, and their shape [N, L, C]."""
        shape = (len(self.texts[side]), self.recurrence.layers, self.recurrence.width)
        return self.folder / f"contexts.{side}.bin", shape


def _iteration_line(lines: Sequence[dict[str, Any]], clock: bool = True) -> str:
    """Console line of the last iteration. clock: with the seconds it took."""
    line = lines[-1]
    loss, bound = line["phase1/loss"], line["phase1/bound"]
    seconds = f"{seconds_of(lines):.1f} s" if clock else ""
    share = f"{loss / bound:.0%}" if bound and loss < 0 else ""  # the first losses are above 0
    shown = f"{line['iteration']:>9}  {loss:>9.4f}  {bound:>9.4f}  {share:>8}  {line['phase1/converged']:>9.0%}"
    return f"{shown}  {seconds:>7}".rstrip()
