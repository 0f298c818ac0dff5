"""Attention with linear biases."""

import math
from typing import Literal

import torch
from torch import Tensor

from newllm.checks import at_least
from newllm.errors import ConfigError
from newllm.position.bias import LinearBias
from newllm.position.encoding import PositionEncoding


class Alibi(PositionEncoding):
    """ALiBi: ``q_i . k_j / sqrt(d) - slope * (i - j)`` (Press et al. 2022, arXiv 2108.12409).

    slope: one number for all heads (not in the paper; attention decays by a factor of e every 1/slope tokens and halves
    every ln 2 / slope), a list with one per head, or "geometric" for the paper's ``2 ** (-8h / H)``
    (pos_encoding=alibi_per_head). No parameters.
    The bias is linear in the key position, so it needs no T x T mask (kernel: row bias or digits). It rotates nothing,
    so latent attention can absorb its weights without a rotary key. Cost: O(T).
    """

    def __init__(
        self,
        slope: float | list[float] | Literal["geometric"] = 0.0625,
        layers: str | list[int] = "all",
        *,
        heads: int,
        num_layers: int,
    ):
        super().__init__(layers, num_layers=num_layers)
        if slope == "geometric":
            slopes = geometric_slopes(heads)
        else:
            slopes = [float(s) for s in slope] if isinstance(slope, list) else [float(slope)]
        if len(slopes) not in (1, heads):
            raise ConfigError(
                f"slope must be one number or {heads} (one per head), as in slope=0.0625; got a list of {len(slopes)}."
            )
        at_least("slope", min(slopes), 0, 0.0625)
        self.register_buffer("slopes", torch.tensor(slopes, dtype=torch.float32), persistent=False)
        self.slopes: Tensor

    def bias(self) -> LinearBias:
        return LinearBias(self.slopes.float())


def geometric_slopes(heads: int) -> list[float]:
    """``2 ** (-8h / H)``, h = 1 .. H; for other H than powers of 2, every other slope of the next power is added."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    if power < heads:
        slopes += [2 ** (-4 * h / power) for h in range(1, 2 * power + 1, 2)][: heads - power]
    return slopes
