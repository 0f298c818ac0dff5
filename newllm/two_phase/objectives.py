"""Objectives of a first phase: contexts should not move between passes, and should differ from one another.

Each objective is a function of its options, named as in conf/objective/. They differ in the diversity term D of a batch
of contexts x [n, C] (0-d; the smaller, the more diverse). D and its bound are as the repository new-llm defines them
(src/losses/diversity.py, 1 December 2025), unless the function says otherwise. `weight` is the share of D, 0.9 in the
published comparison of diversity terms.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from newllm.checks import above, at_least, within
from newllm.effective_rank import entropy, singular_values

_ROWS = 1024  # of a block of all pairs; 8000 contexts take 32 MB in fp32


class Objective:
    """``objective(out [n, C], previous [n, C]) -> (1 - weight) · MSE(out, previous) + weight · D(out)`` (0-d).

    `out`: contexts of n tokens, width C; `previous`: their contexts in the previous pass, without a gradient. Computed
    in fp32 (fp64 for fp64 contexts) even under autocast, since bf16 covariances are too coarse. Finite, with finite
    gradients, for equal contexts and for n = 1.

    least: lower bound of D as a function of n and C, for contexts of norm sqrt(C).
    """

    def __init__(
        self, diversity: Callable[[Tensor], Tensor], least: Callable[[int, int], float], weight: float
    ) -> None:
        within("objective.weight", weight, 0, 1, 0.8)
        self.diversity, self.least, self.weight = diversity, least, weight

    def __call__(self, out: Tensor, previous: Tensor) -> Tensor:
        with torch.autocast(out.device.type, enabled=False):
            out = out if out.dtype == torch.float64 else out.float()
            loss = self.weight * self.diversity(out) if self.weight else out.new_zeros(())
            if self.weight < 1:
                loss = loss + (1 - self.weight) * F.mse_loss(out, previous.detach().to(out.dtype))
        return loss.to(out.dtype)

    def bound(self, n: int, width: int) -> float:
        """Lower bound of the loss of n contexts of norm sqrt(width).

        LayerNorm fixes the norm at sqrt(width) while its gain is 1 and its shift 0. If they are trained, the loss may
        end slightly below. The MSE is at least 0.
        """
        return self.weight * self.least(n, width)


def mcdl(weight: float = 0.8) -> Objective:
    """Mean-centred dispersion: D = -‖X - μ‖_F / n, μ the mean of the batch's n contexts.

    D scales with 1/√n, so the batch size changes its balance with the MSE. Since norms are fixed,
    ‖X - μ‖_F² = n·C - n‖μ‖²: D only drives μ to 0. Published on 29 November 2025 with a weight of 0.8 (the text says
    0.9).
    """
    return Objective(_dispersion, lambda n, width: -math.sqrt(width / n), weight)  # reached at μ = 0


def oacd(weight: float = 1.0, centroid: float = 0.1) -> Objective:
    """Origin-anchored centroid dispersion: D = -‖X - μ‖_F / n + centroid · ‖μ‖².

    As adopted on 1 December 2025: no MSE (weight 1), and a term that draws the mean to the origin independently of
    the batch size.
    """
    at_least("objective.centroid", centroid, 0, 0.1)
    return Objective(
        lambda x: _dispersion(x) + centroid * x.mean(dim=0).square().sum(),
        lambda n, width: -math.sqrt(width / n),  # that of the first term, at μ = 0, where the second is 0 too
        weight,
    )


def ctm(weight: float = 0.9) -> Objective:
    """Covariance trace maximisation: D = -tr(Σ) / C, Σ the covariance over n - 1.

    A first version of the repository left out 1 / C and took 1 / n: the same optimum, at another balance with the MSE.
    """
    return Objective(
        lambda x: -_centred(x).square().sum() / (_freedom(len(x)) * x.shape[1]),
        lambda n, width: -n / (n - 1) if n > 1 else 0.0,  # tr Σ = (n·C - n‖μ‖²) / (n - 1)
        weight,
    )


def odcm(weight: float = 0.9, covariance: float = 0.04) -> Objective:
    """Off-diagonal covariance minimisation: D = mean_j max(0, 1 - √(Σ_jj + 1e-4)) + covariance · Σ_{i≠j} Σ_ij² / C.

    Variance and covariance terms of VICReg (Bardes, Ponce & LeCun 2022, arXiv 2105.04906, eq. 1-4), there weighted
    25 : 1, hence 0.04. The best of the published diversity terms at its cost.
    """
    at_least("objective.covariance", covariance, 0, 0.04)

    def diversity(x: Tensor) -> Tensor:
        matrix = _covariance(x)
        variances = matrix.diagonal()
        spread = (1 - (variances + 1e-4).sqrt()).relu().mean()
        return spread + covariance * (matrix.square().sum() - variances.square().sum()) / x.shape[1]

    # Two sums of squares or positive parts; 0 where Σ is diagonal with variances of 1 and more.
    return Objective(diversity, lambda n, width: 0.0, weight)


def decorr(weight: float = 0.9) -> Objective:
    """Decorrelation: D = mean_ij (R_ij - δ_ij)², R the correlation matrix of the dimensions.

    The redundancy reduction of Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230, eq. 1) with one view instead of
    two. Dimensions are standardised over n - 1 and their products averaged over n, so the diagonal of R is (n - 1) / n;
    standard deviations are at least 1e-4. Invariant to the scale of the contexts.
    """

    def diversity(x: Tensor) -> Tensor:
        matrix = _covariance(x)
        variances = matrix.diagonal().clamp(min=1e-8)  # before the root, whose gradient at 0 is infinite
        scale = variances.rsqrt()
        correlation = matrix * scale * scale[:, None] * (_freedom(len(x)) / len(x))
        return (correlation - torch.eye(len(matrix), dtype=x.dtype, device=x.device)).square().mean()

    # The C diagonal entries are at most (n - 1) / n, the others may be 0.
    return Objective(diversity, lambda n, width: 1 / (n * n * width), weight)


def udel(weight: float = 0.9) -> Objective:
    """Uniform spread: D = mean_j (s_j - s̄)² - s̄, s_j the dimensions' standard deviations over n - 1, s̄ their mean.

    A first version in the repository standardised the dimensions and took mean_j (var_j - 1)², which is always 0, as
    its figure for UDEL in the comparison of 1 December suggests.
    """

    def diversity(x: Tensor) -> Tensor:
        # The gradient at 0 of torch's norm is 0, that of a square root infinite.
        deviations = _centred(x).norm(dim=0) / math.sqrt(_freedom(len(x)))
        mean = deviations.mean()
        return (deviations - mean).square().mean() - mean

    # s̄² <= mean s² = tr Σ / C <= n / (n - 1), with equality where all dimensions have the same spread and μ = 0.
    return Objective(diversity, lambda n, width: -math.sqrt(n / (n - 1)) if n > 1 else 0.0, weight)


def wmse(weight: float = 0.9) -> Objective:
    """Whitening: D = mean_ij (W Σ W - I)_ij², W = (Σ + 1e-4 I)^(-1/2) the ZCA whitening of the batch.

    After W-MSE (Ermolov et al. 2021, arXiv 2007.06346), which compares two whitened views; this one compares the
    whitened covariance of a single view with I. W Σ W and Σ share their eigenvectors, with eigenvalues λ / (λ + ε) and
    λ, so D = ‖ε (Σ + ε I)^-1‖_F² / C²: it counts directions whose variance is below about ε = 1e-4 and is nearly flat
    elsewhere.
    """
    eps = 1e-4

    def diversity(x: Tensor) -> Tensor:
        matrix = _covariance(x.double())
        ridge = eps * torch.eye(len(matrix), dtype=matrix.dtype, device=x.device)
        rest = eps * torch.cholesky_inverse(torch.linalg.cholesky(matrix + ridge))
        return rest.square().mean()

    def least(n: int, width: int) -> float:
        # (ε / (λ + ε))² is convex and decreasing in λ; at most `rank` eigenvalues are nonzero, and their sum tr Σ is
        # at most n·C / (n - 1).
        rank = min(n - 1, width)
        if not rank:
            return 1 / width
        each = n * width / ((n - 1) * rank)
        return (width - rank + rank * (eps / (each + eps)) ** 2) / width**2

    return Objective(diversity, least, weight)


def sdl(weight: float = 0.9) -> Objective:
    """Spectral diversity: D = Σ p ln(p + 1e-10), p = σ / Σσ of the batch, not centred: -ln of its effective rank.

    Trains the effective rank (Roy & Vetterli 2007) directly. The published values used an SVD in fp32; this uses the
    Gram matrix in fp64, accurate to about 1e-7.
    """
    # The bound is the entropy of equal shares.
    return Objective(lambda x: -entropy(singular_values(x)), lambda n, width: -math.log(min(n, width)), weight)


def nuc(weight: float = 0.9) -> Objective:
    """Nuclear norm maximisation: D = -‖X - μ‖_* / n, the sum of the centred batch's singular values.

    A measure of batch diversity in Cui et al. 2020 (arXiv 2003.12237), there for predictions that are not centred.
    """
    return Objective(
        lambda x: -singular_values(_centred(x)).sum() / len(x),
        # (Σσ)² <= rank · Σσ² <= rank · n·C; centring takes one from the rank that n rows can have.
        lambda n, width: -math.sqrt(min(n - 1, width) * width / n),
        weight,
    )


def due(weight: float = 0.9) -> Objective:
    """Dimension usage entropy: D = -H(q) / ln C, q_j = mean_i |x_ij| / Σ_k mean_i |x_ik|.

    Does not measure whether contexts differ: equal contexts that use all dimensions equally reach the minimum.
    """
    return Objective(
        lambda x: -entropy(x.abs().mean(dim=0)) / math.log(max(x.shape[1], 2)),
        lambda n, width: -1.0,  # H <= ln C
        weight,
    )


def unif(weight: float = 0.9) -> Objective:
    """Uniformity on the sphere: D = ln mean_{i≠j} exp(-2 ‖z_i - z_j‖²), z = x / ‖x‖.

    Wang & Isola 2020 (arXiv 2005.10242, eq. 5, t = 2). The repository adds 1e-10 inside the logarithm, a relative
    change below 1e-6. A single context gives 0.
    """

    def diversity(x: Tensor) -> Tensor:
        n = len(x)
        if n == 1:
            return x.sum() * 0
        rows: Tensor = _LogSumExp.apply(F.normalize(x, dim=1), 4.0, False)  # -2 ‖z - z'‖² = 4 cos - 4
        return rows.logsumexp(0) - 4 - math.log(n * (n - 1))

    # Jensen: ln mean exp(-2 d²) >= -2 mean d²; mean d² = 2 - 2 mean cos, and Σ_{i≠j} cos = ‖Σz‖² - n >= -n.
    # A regular simplex reaches it, which needs n <= C + 1.
    return Objective(diversity, lambda n, width: -4 * n / (n - 1) if n > 1 else 0.0, weight)


def infonce(weight: float = 0.9, temperature: float = 0.1) -> Objective:
    """Contrast with the rest of the batch: D = -mean_i ln(exp(1 / τ) / Σ_j exp(cos_ij / τ)), τ the temperature.

    InfoNCE (van den Oord, Li & Vinyals 2018, arXiv 1807.03748, eq. 4) with each context as its own positive, so only
    the denominator has a gradient.
    """
    above("objective.temperature", temperature, 0, 0.1)

    def diversity(x: Tensor) -> Tensor:
        z = F.normalize(x, dim=1)
        own = z.square().sum(dim=1) / temperature  # 1 / τ; 0 for a context that is 0
        rows: Tensor = _LogSumExp.apply(z, 1 / temperature, True)
        return (rows - own).mean()

    def least(n: int, width: int) -> float:
        # ln(1 + Σ_j exp((cos_ij - 1) / τ)) is convex in the cosines, whose mean is at least -1 / (n - 1) (see unif).
        return math.log1p((n - 1) * math.exp(-n / ((n - 1) * temperature))) if n > 1 else 0.0

    return Objective(diversity, least, weight)


def hsic(weight: float = 0.9, pairs: int = 50, samples: int = 1000) -> Objective:
    """Independence of pairs of dimensions: D = mean over pairs (i, j) of tr(K_i H K_j H) / (m - 1)².

    The Hilbert-Schmidt independence criterion (Gretton et al. 2005, eq. 9) with kernels exp(-(a - b)²) on single
    dimensions, H = I - 1/m, on m = min(n, samples) contexts and random pairs i ≠ j, redrawn for every batch. The draw
    is seeded by the batch's values, so that a resumed run repeats it. D is 0 for equal contexts.

    pairs: of dimensions (the repository draws 50 and drops those with i = j). samples: maximum number of contexts.
    """
    at_least("objective.pairs", pairs, 1, 50)
    at_least("objective.samples", samples, 1, 1000)

    def diversity(x: Tensor) -> Tensor:
        n, width = x.shape
        if n == 1 or width == 1:
            return x.sum() * 0
        generator = torch.Generator().manual_seed(hash(float(x.detach().sum(dtype=torch.float64))) & (2**63 - 1))
        chosen = torch.randperm(n, generator=generator)[:samples].to(x.device)
        columns = x[chosen].T
        count = min(pairs, width * (width - 1) // 2)
        first = torch.randint(width, (count,), generator=generator)
        second = (first + torch.randint(1, width, (count,), generator=generator)) % width  # never the same
        total = x.new_zeros(())
        for i, j in zip(first.tolist(), second.tolist(), strict=True):
            total = total + dependence(columns[i], columns[j])
        return total / count

    # The trace of a product of two positive semidefinite matrices.
    return Objective(diversity, lambda n, width: 0.0, weight)


def _dispersion(x: Tensor) -> Tensor:
    """-‖X - μ‖_F / n (0-d), whose gradient torch defines as 0 at 0."""
    return -_centred(x).norm() / len(x)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=0)


def _covariance(x: Tensor) -> Tensor:
    """[C, C] of x [n, C], over n - 1; 0 for a single row."""
    deviations = _centred(x)
    return deviations.T @ deviations / _freedom(len(x))


def _freedom(n: int) -> int:
    return max(n - 1, 1)


class _LogSumExp(torch.autograd.Function):
    """ln Σ_j exp(scale · z_i·z_j) [n] for the rows i of z [n, C]; j = i is left out unless `own`.

    The gradient of row i is scale · Σ_j p_ij z_j for z_i and scale · p_ij z_i for each z_j; p: softmax of the row.

    The n² products are computed in blocks of rows, and again in the backward pass, so memory is linear in n.
    """

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


def dependence(a: Tensor, b: Tensor) -> Tensor:
    """tr(K H L H) / (m - 1)² of the values a [m] and b [m], with K_ij = exp(-(a_i - a_j)²) and L likewise (0-d)."""
    result: Tensor = _Dependence.apply(a, b)
    return result


class _Dependence(torch.autograd.Function):
    """Computes its gradients in the forward pass, so that only m numbers are stored per input, not m²."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        (k, k_slopes), (l_, l_slopes) = _kernel(a), _kernel(b)
        k_centred, l_centred = _centred_twice(k), _centred_twice(l_)
        scale = 1 / (len(a) - 1) ** 2
        # The factor 2: a_i appears in row i and in column i of K, which are equal.
        ctx.save_for_backward(*(2 * scale * (m * s).sum(1) for m, s in ((l_centred, k_slopes), (k_centred, l_slopes))))
        return scale * (k_centred * l_).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        of_a, of_b = ctx.saved_tensors
        return grad_outputs[0] * of_a, grad_outputs[0] * of_b


def _kernel(values: Tensor) -> tuple[Tensor, Tensor]:
    """K [m, m], and its derivatives dK_ij / dvalue_i = -2 (value_i - value_j) K_ij."""
    differences = values[:, None] - values
    kernel = torch.exp(-differences.square())
    return kernel, -2 * differences * kernel


def _centred_twice(kernel: Tensor) -> Tensor:
    """H K H of a symmetric K."""
    across = kernel.mean(dim=0)
    return kernel - across - across[:, None] + across.mean()
