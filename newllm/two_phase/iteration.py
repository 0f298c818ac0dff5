"""One fixed-point iteration: computes all contexts at once, each from its predecessor's in the last iteration."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from newllm.errors import RunError
from newllm.precision import Precision, autocast
from newllm.seeding import stream
from newllm.training.optimizer import AdamW
from newllm.two_phase.contexts import Text, append, shifted
from newllm.two_phase.objectives import Objective
from newllm.two_phase.recurrence import Recurrence


@dataclass(frozen=True)
class Rule:
    """The options of an iteration, as `FixedPoint` documents them."""

    lr: float
    noise: float
    batch_tokens: int
    clip: float | None
    threshold: float
    steps: Literal["pass", "batch", "none"]
    start_std: float
    wrap: bool
    train_norms: bool


@dataclass(frozen=True)
class IterationResult:
    """Loss and its bound (mean over tokens), share of converged contexts, number of optimizer steps."""

    loss: float
    bound: float
    converged: float
    steps: int


class Iteration:
    """Unfreezes a recurrence and trains it on a text.

    Two files of contexts [N, C], fp32, are used in turns, so that a killed iteration leaves those of the last one
    intact. All random numbers follow from (seed, iteration, batch).
    """

    def __init__(
        self, rule: Rule, objective: Objective, recurrence: Recurrence, text: Text, precision: Precision, seed: int
    ) -> None:
        self.rule, self.objective, self.recurrence, self.text = rule, objective, recurrence, text
        self.precision, self.seed = precision, seed
        self.pieces = text.pieces(rule.batch_tokens)
        recurrence.requires_grad_(True)
        if not rule.train_norms:
            for module in recurrence.modules():
                if isinstance(module, nn.LayerNorm):
                    module.requires_grad_(False)
        self.parameters = [p for p in recurrence.parameters() if p.requires_grad]
        # Adam moves a parameter by about the rate per step, and contexts lag behind parameters within an iteration.
        rate = rule.lr / (len(self.pieces) if rule.steps == "batch" else 1)
        adam = AdamW(rate, betas=[0.9, 0.999], weight_decay=0.0, clip=rule.clip, schedule="constant")
        self.optimizer = adam.optimizer(recurrence)

    def contexts(self, folder: Path, iteration: int) -> np.memmap:
        """The last layer's contexts [N, C] of `iteration`, with its noise."""
        path = _file(folder, iteration)
        try:
            return np.memmap(path, np.float32, "r", shape=(len(self.text), self.recurrence.width))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}); delete {folder} to do phase 1 afresh") from None

    def draw_start(self, folder: Path) -> None:
        """Iteration 1: draw random contexts from N(0, start_std^2)."""
        with _file(folder, 1).open("wb", buffering=0) as file:
            for batch, (start, stop) in enumerate(self.pieces):
                append(file, self._normal(stop - start, "start", batch) * self.rule.start_std)
            os.fsync(file.fileno())

    def run(self, folder: Path, iteration: int, after_batch: Callable[[int, float], None]) -> IterationResult:
        """Run iteration 2, 3, …; after_batch: called with the number of batches done and the mean loss so far."""
        device, rule = self.text.device, self.rule
        previous = self.contexts(folder, iteration - 1)
        first = np.array(previous[-1]) if rule.wrap else np.zeros(previous.shape[1], np.float32)
        loss, bound, converged = 0.0, 0.0, 0
        with _file(folder, iteration).open("wb", buffering=0) as file:
            for batch, (start, stop) in enumerate(self.pieces):
                size = stop - start
                context = torch.from_numpy(shifted(previous, start, stop, first)).to(device)
                context += rule.noise * self._normal(size, "noise", iteration, batch)
                before = torch.from_numpy(np.array(previous[start:stop])).to(device)
                with torch.set_grad_enabled(rule.steps != "none"):
                    with autocast(device, self.precision):
                        out = self.recurrence(context, self.text(start, stop))[:, -1].float()
                    value = self.objective(out, before)
                if rule.steps != "none":
                    (value / len(self.pieces) if rule.steps == "pass" else value).backward()
                if rule.steps == "batch":
                    self._step()
                out = out.detach()
                append(file, out)
                loss += size * self._finite(value.item(), iteration)
                bound += size * self.objective.bound(size, out.shape[1])
                converged += int(((out - before).square().mean(dim=1) < rule.threshold).sum())
                after_batch(batch + 1, loss / stop)
            os.fsync(file.fileno())
        if rule.steps == "pass":
            self._step()
        count = len(self.text)
        steps = {"pass": 1, "batch": len(self.pieces), "none": 0}[rule.steps]
        return IterationResult(loss / count, bound / count, converged / count, steps)

    def _step(self) -> None:
        if self.rule.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.rule.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _normal(self, count: int, *name: Any) -> torch.Tensor:
        generator = torch.Generator(self.text.device).manual_seed(stream(self.seed, "phase1", *name))
        return torch.randn(count, self.recurrence.width, generator=generator, device=self.text.device)

    def _finite(self, loss: float, iteration: int) -> float:
        if not math.isfinite(loss):
            raise RunError(
                f"Phase 1 broke at iteration {iteration}: the loss is {loss:g}; a lower rate "
                f"(phase1.lr={self.rule.lr / 10:g}) or phase1.clip=1.0 usually helps, in a run of its own"
            )
        return loss


def remove_contexts(folder: Path) -> None:
    """Remove the two files that the iterations use in turns."""
    for iteration in (0, 1):
        _file(folder, iteration).unlink(missing_ok=True)


def _file(folder: Path, iteration: int) -> Path:
    return folder / f"previous.{iteration % 2}.bin"
