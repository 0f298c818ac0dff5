"""Diversity by the independence of the dimensions: HSIC."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from newllm.errors import ConfigError
from newllm.two_phase.objectives.base import Objective


class Hsic(Objective):
    """Independence of pairs of dimensions: D = mean over pairs (i, j) of tr(K_i H K_j H) / (m - 1)².

    The Hilbert-Schmidt independence criterion (Gretton et al. 2005, eq. 9) with kernels exp(-(a - b)²) on the values of
    single dimensions, H = I - 1/m, for m = min(n, samples) of the contexts and some pairs of i ≠ j, drawn anew for
    every batch. The draw follows from the batch's own numbers, so that a resumed run repeats it. Dimensions that do
    not vary are independent of everything: D is 0 for equal contexts.

    Args:
        weight: share of D.
        pairs: pairs of dimensions (the repository's 50, of which it leaves out those it drew with i = j).
        samples: contexts that are looked at, at most.
    """

    def __init__(self, weight: float = 0.9, pairs: int = 50, samples: int = 1000) -> None:
        super().__init__(weight)
        for name, value, example in (("pairs", pairs, 50), ("samples", samples, 1000)):
            if value < 1:
                raise ConfigError(
                    f"objective.{name} must be at least 1, as in objective.{name}={example}; got {value}."
                )
        self.pairs, self.samples = pairs, samples

    def diversity(self, x: Tensor) -> Tensor:
        n, width = x.shape
        if n == 1 or width == 1:
            return x.sum() * 0
        generator = torch.Generator().manual_seed(hash(float(x.detach().sum(dtype=torch.float64))) & (2**63 - 1))
        chosen = torch.randperm(n, generator=generator)[: self.samples].to(x.device)
        columns = x[chosen].T
        pairs = min(self.pairs, width * (width - 1) // 2)
        first = torch.randint(width, (pairs,), generator=generator)
        second = (first + torch.randint(1, width, (pairs,), generator=generator)) % width  # never the same
        total = x.new_zeros(())
        for i, j in zip(first.tolist(), second.tolist(), strict=True):
            total = total + hsic(columns[i], columns[j])
        return total / pairs

    def least(self, n: int, width: int) -> float:
        return 0.0  # the trace of a product of two positive semidefinite matrices


def hsic(a: Tensor, b: Tensor) -> Tensor:
    """tr(K H L H) / (m - 1)² of the values a [m] and b [m], with K_ij = exp(-(a_i - a_j)²) and L likewise (0-d)."""
    result: Tensor = _Hsic.apply(a, b)
    return result


class _Hsic(torch.autograd.Function):
    """Forms its gradients, of m numbers each, while it has the matrices, of m² each: many pairs take little memory."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        (k, k_slopes), (l_, l_slopes) = _kernel(a), _kernel(b)
        k_centred, l_centred = _centred(k), _centred(l_)
        scale = 1 / (len(a) - 1) ** 2
        # d/da_i: a_i is in the row and in the column i of K, which are alike.
        ctx.save_for_backward(*(2 * scale * (m * s).sum(1) for m, s in ((l_centred, k_slopes), (k_centred, l_slopes))))
        return scale * (k_centred * l_).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        of_a, of_b = ctx.saved_tensors
        return grad_outputs[0] * of_a, grad_outputs[0] * of_b


def _kernel(values: Tensor) -> tuple[Tensor, Tensor]:
    """K [m, m], and its slopes dK_ij / dvalue_i = -2 (value_i - value_j) K_ij."""
    differences = values[:, None] - values
    kernel = torch.exp(-differences.square())
    return kernel, -2 * differences * kernel


def _centred(kernel: Tensor) -> Tensor:
    """H K H of a symmetric K."""
    across = kernel.mean(dim=0)
    return kernel - across - across[:, None] + across.mean()
