"""Singular values of tall or wide matrices, the entropy of their shares, and the effective rank that it makes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from newllm.seeding import stream

SAMPLES = 10_000  # rows of a published effective rank


def singular_values(x: Tensor) -> Tensor:
    """The min(N, C) singular values of x [N, C], ascending, fp64; differentiable.

    By the eigenvalues of the smaller Gram matrix, in fp64: for N >> C one product and a C x C problem. What is left
    below its rounding (sqrt(eps · min(N, C)) of the largest, about 1e-7) is 0, with gradient 0, so that a cloud without
    extent has finite gradients.
    """
    x = x.double()
    gram = x.T @ x if len(x) >= x.shape[1] else x @ x.T
    squares: Tensor = torch.linalg.eigvalsh(gram)
    real = squares > squares[-1].detach() * torch.finfo(squares.dtype).eps * len(squares)
    # sqrt of 1 where the value is no more than rounding: the gradient of sqrt at 0 is infinite, and inf · 0 is NaN.
    return torch.where(real, squares, 1.0).sqrt() * real


def entropy(values: Tensor) -> Tensor:
    """-Σ p ln(p + 1e-10) of p = values / Σ values (0-d, nats); 0 where all values are 0."""
    share = values / values.sum().clamp(min=1e-10)
    return -(share * (share + 1e-10).log()).sum()


def effective_rank(
    x: Any, samples: int | None = SAMPLES, seed: int = 0, centred: bool = False, squared: bool = False
) -> float:
    """exp(-Σ p ln(p + 1e-10)), p = σ / Σσ of the singular values σ of x [N, C]: from 1 to min(N, C) (dims).

    Roy & Vetterli 2007, as published for contexts: of σ, and not centred. n equal orthogonal directions give n. NaN
    where x is not finite.

    Args:
        x: tensor, array or memory map; no more than the sample of it is read.
        samples: rows, drawn at random where there are more; None takes all.
        seed: of the draw.
        centred: subtract the sample's mean first.
        squared: p = σ² / Σσ², which gives lower ranks.
    """
    rows = x[:] if samples is None or len(x) <= samples else x[_draw(len(x), samples, seed)]
    rows = (rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))).double()
    if not bool(rows.isfinite().all()):
        return float("nan")
    if centred:
        rows = rows - rows.mean(dim=0)
    sigma = singular_values(rows)
    return float(entropy(sigma.square() if squared else sigma).exp())


def _draw(count: int, samples: int, seed: int) -> np.ndarray:
    """Places of a random sample without replacement, ascending: a memory map is read from front to back."""
    generator = np.random.default_rng(stream(seed, "effective rank"))
    return np.sort(generator.choice(count, samples, replace=False))
