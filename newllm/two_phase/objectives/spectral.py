"""Diversity by singular values: SDL and NUC."""

import math

from torch import Tensor

from newllm.effective_rank import entropy, singular_values
from newllm.two_phase.objectives.base import Objective


class Sdl(Objective):
    """Spectral diversity: D = Σ p ln(p + 1e-10), p = σ / Σσ of the batch, not centred: -ln of its effective rank.

    What the effective rank measures (Roy & Vetterli 2007), trained directly. The published values came from an SVD in
    fp32; here from the Gram matrix in fp64, to about 1e-7.
    """

    def diversity(self, x: Tensor) -> Tensor:
        return -entropy(singular_values(x))

    def least(self, n: int, width: int) -> float:
        return -math.log(min(n, width))  # the entropy of so many equal shares


class Nuc(Objective):
    """Nuclear norm maximisation: D = -‖X - μ‖_* / n, the sum of the centred batch's singular values.

    As a measure of batch diversity: Cui et al. 2020 (arXiv 2003.12237), there of uncentred predictions.
    """

    def diversity(self, x: Tensor) -> Tensor:
        return -singular_values(x - x.mean(dim=0)).sum() / len(x)

    def least(self, n: int, width: int) -> float:
        # (Σσ)² <= rank · Σσ² <= rank · n·C; centring takes one from the rank that n rows can have.
        return -math.sqrt(min(n - 1, width) * width / n)
