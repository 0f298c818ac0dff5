"""Relative position buckets of T5."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from newllm.errors import ConfigError
from newllm.position.bias import MatrixBias, by_distance
from newllm.position.encoding import PositionEncoding


class T5(PositionEncoding):
    """``q_i . k_j / sqrt(d) + table[bucket(i - j), head]`` (Raffel et al. 2020, arXiv 1910.10683, §2.1), causal form.

    The first half of the buckets hold one distance each; the second half cover logarithmically growing ranges up to
    `max_distance`. All larger distances share the last bucket, so that any length works. One table serves all layers,
    as in T5. (T5 itself does not divide q . k by sqrt(d).)
    Parameters: num_buckets * heads. Cost: O(T^2) per head, O(T) look-ups. Kernel: blocked (matrix bias).
    """

    def __init__(
        self,
        num_buckets: int = 32,
        max_distance: int = 128,
        layers: str | list[int] = "all",
        *,
        heads: int,
        num_layers: int,
    ):
        super().__init__(layers, num_layers=num_layers)
        if num_buckets < 2 or num_buckets % 2:
            raise ConfigError(
                f"pos_encoding.num_buckets must be even and at least 2, as in pos_encoding.num_buckets=32, since half "
                f"of the buckets hold single distances; got {num_buckets}."
            )
        if max_distance <= num_buckets // 2:
            raise ConfigError(
                f"pos_encoding.max_distance must be above {num_buckets // 2}, the distances that have buckets of their "
                f"own, as in pos_encoding.max_distance={4 * num_buckets}; got {max_distance}."
            )
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.table = nn.Parameter(torch.empty(num_buckets, heads))

    def bias(self) -> MatrixBias:
        def of_distance(distance: Tensor) -> Tensor:
            return self.table[buckets(distance, self.num_buckets, self.max_distance)].T

        return MatrixBias(partial(by_distance, of_distance), (self.table,))


def buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket 0 … num_buckets - 1 of each distance >= 0.

    With e = num_buckets / 2: a distance below e itself, else ``e + floor(e ln(distance / e) / ln(max_distance / e))``,
    at most the last bucket.
    """
    exact = num_buckets // 2
    share = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = (exact + (share * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return torch.where(distance < exact, distance, far)
