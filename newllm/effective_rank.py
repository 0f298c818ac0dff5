"""The effective rank of a matrix: the exponential of the entropy of its singular values' shares."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from newllm.seeding import stream

SAMPLES = 10_000  # rows of a published effective rank


def singular_values(x: Tensor) -> Tensor:
    """The min(N, C) singular values of x [N, C], ascending, fp64; differentiable.

    Computed from the eigenvalues of the smaller Gram matrix: one product and a C x C problem if N >> C. Values below
    its rounding (sqrt(eps · min(N, C)) of the largest, about 1e-7) become 0 with gradient 0, so that equal rows have
    finite gradients.
    """
    x = x.double()
    gram = x.T @ x if len(x) >= x.shape[1] else x @ x.T
    squares: Tensor = torch.linalg.eigvalsh(gram)
    real = squares > squares[-1].detach() * torch.finfo(squares.dtype).eps * len(squares)
    # sqrt of 1 in place of values below rounding: the gradient of sqrt at 0 is infinite, and inf · 0 is NaN.
    return torch.where(real, squares, 1.0).sqrt() * real


def entropy(values: Tensor) -> Tensor:
    """-Σ p ln(p + 1e-10) of p = values / Σ values (0-d, nats); 0 where all values are 0."""
    share = values / values.sum().clamp(min=1e-10)
    return -(share * (share + 1e-10).log()).sum()


def effective_rank(
    x: Any, samples: int | None = SAMPLES, seed: int = 0, centred: bool = False, squared: bool = False
) -> float:
    """exp(-Σ p ln(p + 1e-10)), p = σ / Σσ of the singular values σ of x [N, C]: from 1 to min(N, C) (dims).

    Roy & Vetterli 2007, with the published settings for contexts: of σ, not centred. n equal orthogonal directions give
    n. NaN if x is not finite.

    Args:
        x: tensor, array or memory map, of which only the sample is read.
        samples: number of rows, drawn at random from more; None: all rows.
        seed: of the draw.
        centred: subtract the sample's mean first.
        squared: p = σ² / Σσ², which gives lower ranks.
    """
    if samples is None or len(x) <= samples:
        rows = x[:]
    else:
        generator = np.random.default_rng(stream(seed, "effective rank"))
        # Ascending indices, so that a memory map is read from front to back.
        rows = x[np.sort(generator.choice(len(x), samples, replace=False))]
    rows = (rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))).double()
    if not bool(rows.isfinite().all()):
        return float("nan")
    if centred:
        rows = rows - rows.mean(dim=0)
    sigma = singular_values(rows)
    return float(entropy(sigma.square() if squared else sigma).exp())
