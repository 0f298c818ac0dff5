"""One iteration towards the fixed point: all tokens at once, each from its predecessor's context of the iteration
before."""

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
    """The options of an iteration; `FixedPoint` says what they mean."""

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
class Found:
    """An iteration's numbers: objective and its bound (mean over tokens), share of contexts that stayed, steps made."""

    loss: float
    bound: float
    converged: float
    steps: int


class Iteration:
    """Trains a recurrence, which it unfreezes, on a text.

    The contexts [N, C], fp32, of two iterations are in two files used in turns, so that one which breaks off leaves its
    predecessor's as they were; everything else that it draws follows from (seed, iteration, batch).
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
        # Adam moves a parameter by about the rate, and contexts lag behind what moves within an iteration.
        rate = rule.lr / (len(self.pieces) if rule.steps == "batch" else 1)
        adam = AdamW(rate, betas=[0.9, 0.999], weight_decay=0.0, clip=rule.clip, schedule="constant")
        self.optimizer = adam.optimizer(recurrence)

    def contexts(self, folder: Path, iteration: int) -> np.memmap:
        """The last layer's contexts [N, C] that `iteration` has left, made with its noise."""
        path = _file(folder, iteration)
        try:
            return np.memmap(path, np.float32, "r", shape=(len(self.text), self.recurrence.width))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}); delete {folder} to do phase 1 afresh") from None

    def begin(self, folder: Path) -> None:
        """Iteration 1: random contexts N(0, start_std^2)."""
        with _file(folder, 1).open("wb", buffering=0) as file:
            for batch, (start, stop) in enumerate(self.pieces):
                append(file, self._normal(stop - start, "start", batch) * self.rule.start_std)
            os.fsync(file.fileno())

    def once(self, folder: Path, iteration: int, between: Callable[[int, float], None]) -> Found:
        """Iteration 2, 3, …; between: called after each batch with its number, from 1, and the loss so far."""
        device, rule = self.text.device, self.rule
        previous = self.contexts(folder, iteration - 1)
        first = np.array(previous[-1]) if rule.wrap else np.zeros(previous.shape[1], np.float32)
        loss, bound, stayed = 0.0, 0.0, 0
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
                stayed += int(((out - before).square().mean(dim=1) < rule.threshold).sum())
                between(batch + 1, loss / stop)
            os.fsync(file.fileno())
        if rule.steps == "pass":
            self._step()
        count = len(self.text)
        steps = {"pass": 1, "batch": len(self.pieces), "none": 0}[rule.steps]
        return Found(loss / count, bound / count, stayed / count, steps)

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
    """Remove the two files of an iteration that has ended."""
    for iteration in (0, 1):
        _file(folder, iteration).unlink(missing_ok=True)


def _file(folder: Path, iteration: int) -> Path:
    return folder / f"previous.{iteration % 2}.bin"
