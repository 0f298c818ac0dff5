"""The fixed-point iteration: a recurrence is trained on all tokens at once, until their contexts stay as they are."""

import errno
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from torch import nn

from newllm.build import build
from newllm.data import Dataset
from newllm.data.cache import cache_folder, key_of, locked
from newllm.errors import ConfigError, RunError
from newllm.two_phase import store
from newllm.two_phase.base import FirstPhase, Outcome, Work
from newllm.two_phase.contexts import Side
from newllm.two_phase.iterate import Rule
from newllm.two_phase.making import SIDES, Making, reads_contexts
from newllm.two_phase.passes import Text
from newllm.two_phase.recurrence import Recurrence


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
        _require(lr > 0, f"phase1.lr must be above 0; {lr:g} was given, try phase1.lr=2e-3")
        _require(iterations >= 2, f"phase1.iterations must be at least 2; {iterations} was given, try 40")
        _require(
            1 <= least <= iterations,
            f"phase1.least must be from 1 to phase1.iterations={iterations}; {least} was given, try phase1.least="
            f"{min(5, iterations)}",
        )
        _require(noise >= 0, f"phase1.noise must be at least 0; {noise:g} was given, try phase1.noise=0.1")
        _require(start_std >= 0, f"phase1.start_std must be at least 0; {start_std:g} was given, try 0.01")
        _require(batch_tokens >= 1, f"phase1.batch_tokens must be at least 1; {batch_tokens} was given, try 8000")
        _require(clip is None or clip > 0, f"phase1.clip must be above 0, or null for none; {clip} was given")
        _require(threshold > 0, f"phase1.threshold must be above 0; {threshold:g} was given, try phase1.threshold=0.03")
        _require(
            0 < stop <= 1, f"phase1.stop is a share above 0 and at most 1; {stop:g} was given, try phase1.stop=0.99"
        )
        self.rule = Rule(lr, noise, batch_tokens, clip, threshold, steps, start_std, wrap, train_norms)
        self.iterations, self.least, self.stop = iterations, least, stop
        self.train_contexts, self.require_convergence = train_contexts, require_convergence
        self.freeze_embedding = freeze_embedding
        self.folder = None if folder is None else Path(folder).expanduser()
        self.node = dict(objective) if objective and "_target_" in objective else None
        self.objective = build(self.node) if self.node else None
        self.seed = seed

    def check(self, cfg: DictConfig, model: nn.Module, data: Dataset) -> None:
        chosen = cfg.get("choices") or {}
        phase = f"phase1={chosen.get('phase1', 'published')}"
        if not isinstance(getattr(model, "recurrence", None), Recurrence):
            raise ConfigError(
                f"{phase} needs a model with a recurrence, as model=context_token; this run has "
                f"model={chosen.get('model', type(model).__name__)}, so type phase1=none"
            )
        if self.objective is None:
            raise ConfigError(f"{phase} minimises an objective, and this run has none; type objective=mcdl")
        tokens = data.stream("train")
        if len(tokens) < 2:
            raise ConfigError(f"{phase} needs a training text of at least 2 tokens, and there is {len(tokens)}")
        if reads_contexts(model):
            data.stream("val")
        if self.folder is not None:
            store.refuse_other(self.folder, self._settings(cfg))

    def run(self, work: Work) -> Outcome:
        sides = SIDES if reads_contexts(work.model) else SIDES[:1]
        texts = {side: Text(work.model, work.data.stream(side), work.device) for side in sides}
        content = self._content(work, texts)
        folder = self.folder or cache_folder(work.runtime) / "phase1" / key_of(**content)
        with locked(folder, "first phase"):
            store.claim(folder, content)
            try:
                outcome = Making(self, work, texts, folder).outcome()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise RunError(
                        f"no space left for {folder}; free some, or type runtime.cache_dir=FOLDER: the same command "
                        "goes on from the last iteration"
                    ) from error
                raise
        if self.freeze_embedding:
            for name in ("embed", "embed_norm"):
                work.model.get_submodule(name).requires_grad_(False)
        self._refuse_unconverged(outcome)
        return outcome

    def _settings(self, cfg: DictConfig) -> store.Content:
        """What a first phase is made of, as far as the configuration tells."""
        model = OmegaConf.to_container(cfg.model, resolve=True)
        ending = {"iterations": self.iterations, "least": self.least, "stop": self.stop}
        kept = {"train_contexts": self.train_contexts, "seed": self.seed, "rule": store.RULE}
        return store.plain({"model": model, "objective": self.node, "phase1": {**asdict(self.rule), **ending, **kept}})

    def _content(self, work: Work, texts: Mapping[Side, Text]) -> store.Content:
        """All that it is made of."""
        sides: store.Content = {
            side: {"tokens": len(text), "sha256": store.digest_of_tokens(text.tokens)} for side, text in texts.items()
        }
        embeddings = {"sha256": store.digest_of_weights(work.model.embed.weight)}  # type: ignore[union-attr, arg-type]
        arithmetic = store.arithmetic(work.device, work.precision)
        if self.folder is not None:  # whoever names a folder may have made it on another machine
            arithmetic = {"precision": work.precision}
        return {**self._settings(work.cfg), **sides, "embeddings": embeddings, "arithmetic": arithmetic}

    def _refuse_unconverged(self, outcome: Outcome) -> None:
        if self.require_convergence and not outcome.metrics["phase1/reached"]:
            raise ConfigError(
                f"Phase 1 stopped after {outcome.metrics['phase1/iterations']:.0f} iterations with "
                f"{outcome.metrics['phase1/converged']:.2%} of the contexts converged, and {self.stop:.2%} are asked; "
                "go on as it is with phase1.require_convergence=false (its result is kept and will be used), or give "
                f"it more with phase1.iterations={2 * self.iterations}"
            )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
