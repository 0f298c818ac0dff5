"""The fixed-point iteration: a recurrence is trained on all tokens at once, until their contexts stay as they are."""

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
from newllm.two_phase.contexts import Shape, Text, open_contexts, parallel_contexts, true_contexts, write_contexts
from newllm.two_phase.first_phase import FirstPhase, Outcome, seconds_of, write_lines
from newllm.two_phase.iteration import Iteration, Rule, remove_contexts
from newllm.two_phase.recurrence import Piece, Recurrence

Side = Literal["train", "val"]

_HEADING = f"{'iteration':>9}  {'loss':>9}  {'bound':>9}  {'of bound':>8}  {'converged':>9}  {'time':>7}"
_NAMES = {"train": "training", "val": "validation"}


class FixedPoint(FirstPhase):
    """Trains ``c_t = f(c_{t-1}, u_t)`` without going through the tokens one after another, then freezes f.

    Iteration 1 draws contexts c_t ~ N(0, start_std^2) for all N tokens of the training text. Each further one makes
    ``out_t = f(previous_{t-1} + noise * N(0, 1), u_t)`` for all t at once, with no gradient through `previous`,
    minimises an objective of out_t and previous_t by Adam on f's parameters alone, and lets `out` be the next
    `previous` (as it was made: before the step, noise included). A context whose mean square change over its dims is
    below `threshold` counts as converged; it ends when the share `stop` has, after at least `least` iterations.

    Then the contexts of all layers are stored for a model that reads them: those of the training text from one more
    parallel pass without new noise (token 0 from zeros), those of the validation text by the true recurrence from
    zeros. Models that run their recurrence themselves need none.

    Source: the context/token experiments of rato-tokyo/new-llm (src/trainers/phase1/memory.py, 29 November 2025), which
    make one step of Adam an iteration.

    Cost: an iteration is one forward and one backward pass of f over N tokens. In memory: one batch; on disk, two
    times N * C * 4 bytes while it iterates, and N * L * C * 4 (in bf16: 2) of the contexts afterwards, in the
    cache folder, where runs with an equal first phase find them.

    Args:
        lr: Adam's rate (betas 0.9 and 0.999, eps 1e-8, no decay) for an iteration, the same in all. steps="batch"
            shares it among the iteration's steps: else f would move faster the longer the text is, and its contexts
            could not follow.
        iterations: the most that are done, the random contexts of the first one included.
        least: the fewest.
        noise: standard deviation of what is added to the contexts that are read.
        batch_tokens: consecutive tokens that the objective sees at a time; a diversity term's scale depends on it.
        clip: largest norm of the gradient; None leaves it as it is.
        threshold: mean square change below which a context has converged.
        stop: share of converged contexts that ends the iteration.
        steps: "pass": one step an iteration, along the mean gradient of its batches, as published. "batch": one step a
            batch, so that the training does not get shorter as batches get larger. "none": f stays as it was drawn, the
            control that says what the training of f is worth.
        start_std: standard deviation of the random contexts.
        wrap: the first token reads the last one's context, as published; else zeros.
        train_norms: the gains and shifts of f's norms are trained too, as published. A diversity term then goes on
            falling below its bound as the contexts grow, which few steps hide; False keeps their norm at sqrt(C).
        train_contexts: how the training text's stored contexts are made: "parallel", as published, which leaves the
            iteration's noise in them, or "sequential", by the true recurrence, as validation's are.
        freeze_embedding: what f reads stays as f has known it: the embedding and its norm are frozen with it. Of no
            effect on a model whose embedding is frozen in any case.
        require_convergence: end the run where the iteration has ended without `stop` of the contexts converged.
        folder: where the phase's files are kept; None: a folder in the cache, named for what the phase is made of, and
            for the device and threads that its last bits depend on.
        objective: node of what is minimised (newllm.two_phase.objectives).
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
                outcome = _PhaseRunner(self, run, folder).outcome()
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
        """Did the last iteration leave enough contexts where they were?"""
        return bool(progress.history) and bool(progress.history[-1]["phase1/converged"] >= self.stop)

    def _settings(self, cfg: DictConfig) -> phase_folder.Content:
        """What a first phase is made of, as far as the configuration tells."""
        options = {
            **asdict(self.rule), "iterations": self.iterations, "least": self.least, "stop": self.stop,
            "train_contexts": self.train_contexts, "seed": self.seed, "rule": phase_folder.RULE,
        }  # fmt: skip
        model = OmegaConf.to_container(cfg.model, resolve=True)
        return phase_folder.plain({"model": model, "objective": self.node, "phase1": options})

    def _content(self, run: Run) -> phase_folder.Content:
        """All that it is made of."""
        streams = {side: run.data.stream(side) for side in _sides(run.model)}
        content = self._settings(run.cfg)
        for side, tokens in streams.items():
            content[side] = {"tokens": len(tokens), "sha256": phase_folder.digest_of_tokens(tokens)}
        content["embeddings"] = {"sha256": phase_folder.digest_of_weights(run.model.embed.weight)}
        content["arithmetic"] = {"precision": run.precision}
        if self.folder is None:  # whoever names a folder may have made it on another machine
            threads = {"threads": torch.get_num_threads()} if run.device.type == "cpu" else {}
            content["arithmetic"] |= {"device": run.device.type, **threads}
        return content


def reads_contexts(model: torch.nn.Module) -> bool:
    """Does the model have a second phase that reads stored contexts, rather than run its recurrence itself?"""
    return hasattr(model, "read")


def _sides(model: torch.nn.Module) -> tuple[Side, ...]:
    """The texts whose contexts the phase makes."""
    return ("train", "val") if reads_contexts(model) else ("train",)


class _PhaseRunner:
    """One run's work in the folder of a first phase, whose lock it holds: iterate, then store the contexts. Each step
    is skipped when it is done.

    An iteration's contexts are written first, then the checkpoint, then the line about it.
    """

    def __init__(self, phase: FixedPoint, run: Run, folder: Path) -> None:
        self.phase, self.run, self.folder = phase, run, folder
        self.recurrence: Recurrence = run.model.recurrence  # type: ignore[assignment]
        self.texts = {side: Text(run.model, run.data.stream(side), run.device) for side in _sides(run.model)}
        sizes = self.recurrence.layers, self.recurrence.width
        self.shapes: dict[Side, Shape] = {side: (len(text), *sizes) for side, text in self.texts.items()}
        self.state_file, self.outcome_file = folder / "state.safetensors", folder / "outcome.json"

    def outcome(self) -> Outcome:
        """What the phase has come to, the weights in the model; done now if it was not."""
        console = self.run.console
        console.line()
        if self._is_done():
            console.line(f"Phase 1 has been done before: taken from {self.folder}.")
            console.line(_HEADING, style="bold")
            progress = Progress(**load_weights(self.state_file, self.recurrence)["progress"])
            self._show(progress)
        else:
            with self.run.signals.deferred():
                progress = self._make()
        self.recurrence.requires_grad_(False)
        metrics = json.loads(self.outcome_file.read_text(encoding="utf-8"))
        reached = "reached its fixed point" if metrics["phase1/reached"] else "stopped without a fixed point"
        tokens, width, rank = len(self.texts["train"]), self.recurrence.width, metrics["context/rank@train"]
        size = sum(path.stat().st_size for path in self.folder.iterdir()) / 2**20
        text = [
            f"Phase 1 {reached}: {metrics['phase1/converged']:.1%} of {tokens:,} contexts converged after "
            f"{metrics['phase1/iterations']:.0f} iterations ({metrics['phase1/steps']:,.0f} steps of the optimizer).",
            f"Effective rank of the training contexts: {rank:,.1f} of {width:,} dims, {rank / width:.1%} (as the last "
            f"iteration left them, its noise included; {min(tokens, SAMPLES):,} of them, not centred).",
            f"On disk: {size:,.1f} MiB in {self.folder}.",
        ]
        stored = self._stored()
        data = with_contexts(self.run.data, stored["train"], stored["val"]) if stored else None
        return Outcome(metrics, progress.history, text, data)

    def _is_done(self) -> bool:
        if not self.outcome_file.exists():
            return False
        if self.state_file.exists() and (self._stored() or not reads_contexts(self.run.model)):
            return True
        # Somebody has deleted a part, and the contexts that it was made of no longer exist: afresh.
        for path in (self.outcome_file, self.state_file):
            path.unlink(missing_ok=True)
        return False

    def _make(self) -> Progress:
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
        """All iterations that are left. Of the progress, an epoch is an iteration, its history the lines about them."""
        phase, run, began = self.phase, self.run, time.monotonic()
        progress = Progress()
        if self.state_file.exists():
            progress = load_training(self.state_file, self.recurrence, iteration.optimizer, {})
            began -= progress.seconds
        again = f"; goes on after iteration {progress.epoch}" if progress.epoch > 1 else ""
        run.console.line(
            f"Phase 1: {len(iteration.text):,} contexts by fixed-point iteration, at most {phase.iterations} "
            f"iterations, until {phase.stop:.0%} stay within {phase.rule.threshold:g}{again}."
        )
        run.console.line(_HEADING, style="bold")
        if not progress.epoch:
            iteration.begin(self.folder)
            progress.epoch, progress.seconds = 1, time.monotonic() - began
            save_training(self.state_file, self.recurrence, iteration.optimizer, progress, {})
        self._show(progress)
        while progress.epoch < phase.iterations and not (progress.epoch >= phase.least and phase.converged(progress)):
            phase.report(run, progress.epoch, phase.iterations, progress.history)
            number, since = progress.epoch + 1, time.monotonic()
            with run.console.progress(len(iteration.pieces), 0) as bar:

                def between(batch: int, loss: float, bar: Any = bar, since: float = since) -> None:
                    run.signals.check()
                    speed = batch * phase.rule.batch_tokens / max(time.monotonic() - since, 1e-9)
                    bar(batch, loss, speed)

                found = iteration.once(self.folder, number, between)
            progress.epoch, progress.step = number, progress.step + found.steps
            progress.seconds = time.monotonic() - began
            numbers = {"phase1/loss": found.loss, "phase1/bound": found.bound, "phase1/converged": found.converged}
            line = {"phase": phase.name, "iteration": number, **numbers, "time/seconds": progress.seconds}
            progress.history.append(line)
            save_training(self.state_file, self.recurrence, iteration.optimizer, progress, {})
            write_lines(run.directory, progress.history)
            run.logger.log(number, numbers)
            run.console.line(_iteration_line(progress.history))
        phase.report(run, progress.epoch, phase.iterations, progress.history)
        return progress

    def _show(self, progress: Progress) -> None:
        """The iterations that are done already."""
        write_lines(self.run.directory, progress.history)
        for number in range(1, len(progress.history) + 1):
            self.run.console.line(_iteration_line(progress.history[:number], clock=False))

    def _store(self, side: Side, previous: np.ndarray) -> None:
        """All layers' contexts of a side, from those that the last iteration left or by the true recurrence."""
        path, shape, precision, since = self._path(side), self.shapes[side], self.run.precision, time.monotonic()
        if open_contexts(path, shape, precision) is not None:
            return
        if side == "train" and self.phase.train_contexts == "parallel":
            batch = self.phase.rule.batch_tokens
            pieces = parallel_contexts(self.recurrence, self.texts[side], previous, batch, precision)
        else:
            pieces = true_contexts(self.recurrence, self.texts[side], precision)

        def stoppable() -> Iterator[Piece]:
            for piece in pieces:
                self.run.signals.check()
                yield piece

        write_contexts(path, shape, stoppable(), precision)
        size, seconds = path.stat().st_size / 2**20, time.monotonic() - since
        self.run.console.line(
            f"Contexts of the {_NAMES[side]} text stored: {shape[0]:,} tokens, {shape[1]} layers, {shape[2]:,} wide; "
            f"{size:,.1f} MiB, {seconds:.1f} s."
        )

    def _stored(self) -> dict[Side, torch.Tensor]:
        """The contexts on disk; empty unless those of both sides are there."""
        found = {side: open_contexts(self._path(side), self.shapes[side], self.run.precision) for side in self.shapes}
        there = {side: contexts for side, contexts in found.items() if contexts is not None}
        return there if len(there) == 2 else {}

    def _path(self, side: Side) -> Path:
        return self.folder / f"contexts.{side}.bin"


def _iteration_line(lines: Sequence[dict[str, Any]], clock: bool = True) -> str:
    """The last of the lines of metrics.jsonl, for reading. clock: with its time."""
    line = lines[-1]
    loss, bound = line["phase1/loss"], line["phase1/bound"]
    seconds = f"{seconds_of(lines):.1f} s" if clock else ""
    share = f"{loss / bound:.0%}" if bound and loss < 0 else ""  # the first losses are above 0
    shown = f"{line['iteration']:>9}  {loss:>9.4f}  {bound:>9.4f}  {share:>8}  {line['phase1/converged']:>9.0%}"
    return f"{shown}  {seconds:>7}".rstrip()
