"""Diversity by the angles between contexts: UNIF and InfoNCE.

Both need all n² cosines. They are made by blocks of rows and made again in the backward pass, so that memory is a
block's times n, not n².
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from newllm.errors import ConfigError
from newllm.two_phase.objectives.base import Objective

_ROWS = 1024  # of a block; 8000 contexts take 32 MB in fp32


class Unif(Objective):
    """Uniformity on the sphere: D = ln mean_{i≠j} exp(-2 ‖z_i - z_j‖²), z = x / ‖x‖.

    Wang & Isola 2020 (arXiv 2005.10242, eq. 5, t = 2). The repository adds 1e-10 inside the logarithm, which is less
    than 1e-6 of any value it can have. A single context gives 0.
    """

    def diversity(self, x: Tensor) -> Tensor:
        n = len(x)
        if n == 1:
            return x.sum() * 0
        rows = log_sum_exp(F.normalize(x, dim=1), 4.0, own=False)  # -2 ‖z - z'‖² = 4 cos - 4
        return rows.logsumexp(0) - 4 - math.log(n * (n - 1))

    def least(self, n: int, width: int) -> float:
        # Jensen: ln mean exp(-2 d²) >= -2 mean d²; mean d² = 2 - 2 mean cos, and Σ_{i≠j} cos = ‖Σz‖² - n >= -n.
        # A regular simplex reaches it, for which n <= C + 1; more contexts stay above.
        return -4 * n / (n - 1) if n > 1 else 0.0


class InfoNCE(Objective):
    """Contrast with the rest of the batch: D = -mean_i ln(exp(1 / τ) / Σ_j exp(cos_ij / τ)).

    InfoNCE (van den Oord, Li & Vinyals 2018, arXiv 1807.03748, eq. 4) with each context as its own positive, so that
    only the denominator has a gradient.

    Args:
        weight: share of D.
        temperature: τ.
    """

    def __init__(self, weight: float = 0.9, temperature: float = 0.1) -> None:
        super().__init__(weight)
        if temperature <= 0:
            raise ConfigError(
                f"objective.temperature must be above 0, as in objective.temperature=0.1; got {temperature:g}."
            )
        self.temperature = temperature

    def diversity(self, x: Tensor) -> Tensor:
        z = F.normalize(x, dim=1)
        own = z.square().sum(dim=1) / self.temperature  # 1 / τ; 0 for a context that is 0
        return (log_sum_exp(z, 1 / self.temperature, own=True) - own).mean()

    def least(self, n: int, width: int) -> float:
        # ln(1 + Σ_j exp((cos_ij - 1) / τ)) is convex in the cosines, whose mean is at least -1 / (n - 1) (see Unif).
        return math.log1p((n - 1) * math.exp(-n / ((n - 1) * self.temperature))) if n > 1 else 0.0


def log_sum_exp(z: Tensor, scale: float, own: bool) -> Tensor:
    """ln Σ_j exp(scale · z_i·z_j) of each row of z [n, C], over all j or those that are not i: [n]."""
    result: Tensor = _LogSumExp.apply(z, scale, own)
    return result


class _LogSumExp(torch.autograd.Function):
    """d/dz of row i is scale · Σ_j p_ij z_j for itself and scale · p_ij z_i for each j, p the softmax of the row."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: float, own: bool) -> Tensor:
        ctx.scale, ctx.own = scale, own
        sums = torch.cat([_exponents(z, start, scale, own).logsumexp(dim=1) for start in range(0, len(z), _ROWS)])
        ctx.save_for_backward(z, sums)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        z, sums = ctx.saved_tensors
        gradient = torch.zeros_like(z)
        for start in range(0, len(z), _ROWS):
            rows = slice(start, start + _ROWS)
            shares = (_exponents(z, start, ctx.scale, ctx.own) - sums[rows, None]).exp_()
            shares *= ctx.scale * grad_outputs[0][rows, None]
            gradient[rows] += shares @ z
            gradient += shares.T @ z[rows]
        return gradient, None, None


def _exponents(z: Tensor, start: int, scale: float, own: bool) -> Tensor:
    """scale · z_i·z_j of a block of rows i from `start` on, with -inf at j = i unless `own`."""
    exponents = scale * z[start : start + _ROWS] @ z.T
    if not own:
        exponents.diagonal(start).fill_(-math.inf)
    return exponents
