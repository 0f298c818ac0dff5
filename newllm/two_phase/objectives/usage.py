"""Diversity by how evenly the dimensions are used: DUE."""

import math

from torch import Tensor

from newllm.effective_rank import entropy
from newllm.two_phase.objectives.base import Objective


class Due(Objective):
    """Dimension usage entropy: D = -H(q) / ln C, q_j = mean_i |x_ij| / Σ_k mean_i |x_ik|.

    Blind to whether the contexts differ: equal ones that use all dimensions alike have the lowest value.
    """

    def diversity(self, x: Tensor) -> Tensor:
        return -entropy(x.abs().mean(dim=0)) / math.log(max(x.shape[1], 2))

    def least(self, n: int, width: int) -> float:
        return -1.0  # H <= ln C
