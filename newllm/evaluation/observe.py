"""Queries and keys as a forward pass makes them, and sums over them that need no second look."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from newllm.errors import ConfigError
from newllm.model import LanguageModel


def require_attention(evaluator: str, model: LanguageModel) -> None:
    """ConfigError where `evaluator` (a name in eval) would look at attention in a model that has none."""
    if not all(hasattr(block, "attention") for block in model.blocks):
        raise ConfigError(
            f"eval.{evaluator} looks at attention, and {type(model).__name__} has none; leave it out, as in "
            "eval=[loss,accuracy]."
        )


@contextmanager
def observing(model: LanguageModel, see: Callable[[int, dict[str, Tensor]], None]) -> Iterator[None]:
    """Within the context every forward pass calls ``see(layer, tensors)`` once per layer; always undone."""
    attentions: list[Any] = [block.attention for block in model.blocks]
    before = [attention.observer for attention in attentions]
    try:
        for layer, attention in enumerate(attentions):
            attention.observer = lambda tensors, layer=layer: see(layer, tensors)
        yield
    finally:
        for attention, observer in zip(attentions, before, strict=True):
            attention.observer = observer


@dataclass
class Statistics:
    """Running statistics of one tensor of one layer, fed batch by batch; holds nothing of size B or T."""

    pairs: list[tuple[int, int, float]] = field(default_factory=list)  # (dim, dim, inv_freq) of the pairs to follow
    maxima: list[float] = field(default_factory=list)  # per batch: max |x|, mean |x|, unbiased std of the signed x
    means: list[float] = field(default_factory=list)
    stds: list[float] = field(default_factory=list)
    dim_max: Tensor | None = None  # [D] max |x_d|
    pair_max: Tensor | None = None  # [P] max of the pair norm
    pair_sum: Tensor | None = None  # [P] fp64 sum of the pair norm over `count` vectors
    squares: Tensor | None = None  # [H, D] fp64 sum over sequences of the squared L2 norm over positions
    count: int = 0
    sequences: int = 0

    def add(self, x: Tensor) -> None:
        """x [B, H, T, D] in any precision."""
        x = x.detach().float()
        size = x.abs()
        self.maxima.append(float(size.max()))
        self.means.append(float(size.mean()))
        self.stds.append(float(x.std()))
        self.dim_max = _larger(self.dim_max, size.amax(dim=(0, 1, 2)))
        self.squares = _sum(self.squares, x.double().square().sum(dim=(0, 2)))
        if self.pairs:
            a, b = (torch.tensor([pair[i] for pair in self.pairs], device=x.device) for i in (0, 1))
            norm = torch.hypot(x[..., a], x[..., b])  # [B, H, T, P]
            self.pair_max = _larger(self.pair_max, norm.amax(dim=(0, 1, 2)))
            self.pair_sum = _sum(self.pair_sum, norm.double().sum(dim=(0, 1, 2)))
        self.count += x[..., 0].numel()
        self.sequences += len(x)

    @property
    def max(self) -> float:
        return max(self.maxima)

    @property
    def mean(self) -> float:
        return sum(self.means) / len(self.means)

    @property
    def std(self) -> float:
        return sum(self.stds) / len(self.stds)

    def norms(self) -> Tensor:
        """M [H, D]: L2 norm over the positions of a sequence (Jin et al. 2025), root mean square over sequences."""
        assert self.squares is not None
        return (self.squares / self.sequences).sqrt()


def _larger(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else torch.maximum(old, new)


def _sum(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else old + new
