"""Distance from the batch's mean: MCDL, as published, and OACD, which took its place."""

import math

from torch import Tensor

from newllm.errors import ConfigError
from newllm.two_phase.objectives.base import Objective


class Mcdl(Objective):
    """Mean-centred dispersion: D = -‖X - μ‖_F / n, μ the mean of the batch's n contexts.

    One Frobenius norm of the whole batch over n, so D shrinks with 1/√n: another batch size is another balance with the
    MSE. Since norms are pinned, ‖X - μ‖_F² = n·C - n‖μ‖², and all that D does is to drive μ to 0.

    Args:
        weight: share of D; 0.8 as published on 29 November 2025 (whose text says 0.9).
    """

    def __init__(self, weight: float = 0.8) -> None:
        super().__init__(weight)

    def diversity(self, x: Tensor) -> Tensor:
        return dispersion(x)

    def least(self, n: int, width: int) -> float:
        # ‖X - μ‖_F² = Σ‖x‖² - n‖μ‖² = n·C - n‖μ‖² <= n·C, with equality at μ = 0.
        return -math.sqrt(width / n)


class Oacd(Objective):
    """Origin-anchored centroid dispersion: D = -‖X - μ‖_F / n + a ‖μ‖².

    As adopted on 1 December 2025: no MSE (weight 1), and the mean is drawn to the origin by a term of its own, which
    does not shrink with the batch.

    Args:
        weight: share of D; 1 leaves the MSE out.
        centroid: a.
    """

    def __init__(self, weight: float = 1.0, centroid: float = 0.1) -> None:
        super().__init__(weight)
        if centroid < 0:
            raise ConfigError(
                f"objective.centroid must be 0 or greater, as in objective.centroid=0.1; got {centroid:g}."
            )
        self.centroid = centroid

    def diversity(self, x: Tensor) -> Tensor:
        return dispersion(x) + self.centroid * x.mean(dim=0).square().sum()

    def least(self, n: int, width: int) -> float:
        return -math.sqrt(width / n)  # that of the first term, at μ = 0, where the second is 0 too


def dispersion(x: Tensor) -> Tensor:
    """-‖X - μ‖_F / n (0-d); torch gives the norm's gradient at 0 as 0."""
    return -(x - x.mean(dim=0)).norm() / len(x)
