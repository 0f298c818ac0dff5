"""Diversity by the covariance of the dimensions: CTM, ODCM, DECORR, UDEL, W-MSE."""

import math

import torch
from torch import Tensor

from newllm.errors import ConfigError
from newllm.two_phase.objectives.base import Objective


class Ctm(Objective):
    """Covariance trace maximisation: D = -tr(Σ) / C, Σ the covariance over n - 1.

    A first version of the repository left out 1 / C and took 1 / n: the same optimum, at another balance with the MSE.
    """

    def diversity(self, x: Tensor) -> Tensor:
        return -centred(x).square().sum() / (_freedom(len(x)) * x.shape[1])

    def least(self, n: int, width: int) -> float:
        return -n / (n - 1) if n > 1 else 0.0  # tr Σ = (n·C - n‖μ‖²) / (n - 1)


class Odcm(Objective):
    """Off-diagonal covariance minimisation: D = mean_j max(0, 1 - √(Σ_jj + 1e-4)) + a · Σ_{i≠j} Σ_ij² / C.

    Variance and covariance terms of VICReg (Bardes, Ponce & LeCun 2022, arXiv 2105.04906, eq. 1-4), there weighted
    25 : 1, which is a = 0.04. Of the published diversity terms the best at its price.
    """

    def __init__(self, weight: float = 0.9, covariance: float = 0.04) -> None:
        super().__init__(weight)
        if covariance < 0:
            raise ConfigError(
                f"objective.covariance must be 0 or greater, as in objective.covariance=0.04; got {covariance:g}."
            )
        self.covariance = covariance

    def diversity(self, x: Tensor) -> Tensor:
        matrix = covariance(x)
        variances = matrix.diagonal()
        spread = (1 - (variances + 1e-4).sqrt()).relu().mean()
        return spread + self.covariance * (matrix.square().sum() - variances.square().sum()) / x.shape[1]

    def least(self, n: int, width: int) -> float:
        return 0.0  # two sums of squares or positive parts; 0 where Σ is diagonal with variances of 1 and more


class Decorr(Objective):
    """Decorrelation: D = mean_ij (R_ij - δ_ij)², R the correlation matrix of the dimensions.

    After the redundancy reduction of Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230, eq. 1) with one view in
    place of two. R divides by n the products of dimensions that were standardised over n - 1, so its diagonal is
    (n - 1) / n; standard deviations below 1e-4 count as 1e-4. Blind to the size of the cloud.
    """

    def diversity(self, x: Tensor) -> Tensor:
        matrix = covariance(x)
        variances = matrix.diagonal().clamp(min=1e-8)  # before the root, whose gradient at 0 is infinite
        scale = variances.rsqrt()
        correlation = matrix * scale * scale[:, None] * (_freedom(len(x)) / len(x))
        return (correlation - torch.eye(len(matrix), dtype=x.dtype, device=x.device)).square().mean()

    def least(self, n: int, width: int) -> float:
        return 1 / (n * n * width)  # the C diagonal entries are at most (n - 1) / n, the others may be 0


class Udel(Objective):
    """Uniform spread: D = mean_j (s_j - s̄)² - s̄, s_j the dimensions' standard deviations over n - 1, s̄ their mean.

    A first version of the repository standardised the dimensions and took mean_j (var_j - 1)², which is 0 for every
    cloud and has no gradient; its figure for UDEL in the comparison of 1 December fits that.
    """

    def diversity(self, x: Tensor) -> Tensor:
        # torch gives the norm's gradient at 0 as 0, a square root's as infinite.
        spread = centred(x).norm(dim=0) / math.sqrt(_freedom(len(x)))
        mean = spread.mean()
        return (spread - mean).square().mean() - mean

    def least(self, n: int, width: int) -> float:
        # s̄² <= mean s² = tr Σ / C <= n / (n - 1), with equality where all dimensions have the same spread and μ = 0.
        return -math.sqrt(n / (n - 1)) if n > 1 else 0.0


class Wmse(Objective):
    """Whitening: D = mean_ij (W Σ W - I)_ij², W = (Σ + 1e-4 I)^(-1/2) the ZCA whitening of the batch.

    After W-MSE (Ermolov et al. 2021, arXiv 2007.06346), which compares two whitened views; here the covariance of the
    only view, whitened, is compared with I. W Σ W and Σ have the same eigenvectors, and eigenvalues λ / (λ + ε)
    and λ, so D = ‖ε (Σ + ε I)^-1‖_F² / C²: it counts the directions in which the cloud has less than about
    ε = 1e-4 of variance, and is all but flat elsewhere.
    """

    _EPS = 1e-4

    def diversity(self, x: Tensor) -> Tensor:
        matrix = covariance(x.double())
        ridge = self._EPS * torch.eye(len(matrix), dtype=matrix.dtype, device=x.device)
        rest = self._EPS * torch.cholesky_inverse(torch.linalg.cholesky(matrix + ridge))
        return rest.square().mean()

    def least(self, n: int, width: int) -> float:
        # (ε / (λ + ε))² is convex and falls with λ; at most r eigenvalues are not 0, and they sum up to tr Σ, which
        # is at most n·C / (n - 1).
        rank = min(n - 1, width)
        if not rank:
            return 1 / width
        each = n * width / ((n - 1) * rank)
        return (width - rank + rank * (self._EPS / (each + self._EPS)) ** 2) / width**2


def centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=0)


def covariance(x: Tensor) -> Tensor:
    """[C, C] of x [n, C], over n - 1; 0 for a single row."""
    deviations = centred(x)
    return deviations.T @ deviations / _freedom(len(x))


def _freedom(n: int) -> int:
    return max(n - 1, 1)
