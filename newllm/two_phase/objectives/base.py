"""What trains contexts in a first phase: stay where you were, and be different from one another."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.errors import ConfigError


class Objective(ABC):
    """``objective(out [n, C], previous [n, C]) -> (1 - weight) · MSE(out, previous) + weight · D(out)`` (0-d).

    `out` are a batch's contexts, `previous` the same tokens' contexts of the pass before, through which no gradient
    flows; n tokens, width C. Subclasses say what the diversity term D is. In fp32 (fp64 for fp64 contexts) whatever
    autocast says, since covariances of bf16 products lose what they are to measure. Finite, with finite gradients, for
    contexts that are all equal and for n = 1.

    Values and bounds are those of D as the repository new-llm defines it (src/losses/diversity.py, 1 December 2025),
    unless the class says otherwise.

    Args:
        weight: share of the diversity term, in [0, 1]; 0.9 in the published comparison of diversity terms.
    """

    def __init__(self, weight: float = 0.9) -> None:
        if not 0 <= weight <= 1:
            raise ConfigError(
                f"objective.weight is the diversity term's share, a number from 0 to 1 as in objective.weight=0.8; "
                f"got {weight:g}."
            )
        self.weight = weight

    def __call__(self, out: Tensor, previous: Tensor) -> Tensor:
        with torch.autocast(out.device.type, enabled=False):
            out = out if out.dtype == torch.float64 else out.float()
            loss = self.weight * self.diversity(out) if self.weight else out.new_zeros(())
            if self.weight < 1:
                loss = loss + (1 - self.weight) * F.mse_loss(out, previous.detach().to(out.dtype))
        return loss.to(out.dtype)

    def bound(self, n: int, width: int) -> float | None:
        """A value that the loss of n contexts of norm sqrt(width) cannot go below, None if none is known.

        LayerNorm pins the norm to sqrt(width) while its gain is 1 and its shift 0. Both are trained, so a loss may end
        a little below. The MSE is 0 at best.
        """
        least = self.least(n, width)
        return None if least is None else self.weight * least

    @abstractmethod
    def diversity(self, x: Tensor) -> Tensor:
        """D of contexts x [n, C] (0-d): the smaller, the more diverse they are."""

    @abstractmethod
    def least(self, n: int, width: int) -> float | None:
        """Lower bound of D for n contexts of norm sqrt(width), None if none is known."""
