"""Rotary position embedding."""

from typing import Literal

import torch
from torch import Tensor

from newllm.errors import ConfigError
from newllm.position import frequencies
from newllm.position.base import PositionEncoding


class Rope(PositionEncoding):
    """RoPE: the pair k of coordinates turns by ``position * theta ** (-2k / r)`` (Su et al. 2021, arXiv 2104.09864).

    The first ``r = head_dim * rotary_pct`` dims of q and k turn, the others pass; the exponent is over r, as in
    GPT-NeoX and Pythia. Angles, cosines and sines are fp32 whatever the precision of q and k.

    layout: "half" pairs dims (k, k + r/2) as GPT-NeoX and Llama do, "interleaved" pairs (2k, 2k + 1) as GPT-J and
    DeepSeek do: the same function up to a permutation of the dims.
    Cost: O(T r) per head. Kernel: plain causal attention. On MLA it turns the decoupled key (`rope_dim` wide).
    """

    rotates = True

    def __init__(
        self,
        theta: float = 10000.0,
        rotary_pct: float = 1.0,
        layout: Literal["half", "interleaved"] = "half",
        layers: str | list[int] = "all",
        *,
        head_dim: int,
        num_layers: int,
    ):
        super().__init__(layers, num_layers=num_layers)
        if theta <= 0:
            raise ConfigError(f"theta must be greater than 0, as in theta=10000; got {theta}.")
        width = int(head_dim * rotary_pct)
        if not 0 < rotary_pct <= 1 or width == 0 or width % 2:
            raise ConfigError(
                f"rotary_pct must lie in (0, 1] and give an even number of rotary dims of the {head_dim} there are, "
                f"as rotary_pct={2 * max(1, head_dim // 8) / head_dim:g} does; "
                f"{rotary_pct:g} gives {head_dim * rotary_pct:g}."
            )
        self.layout = layout
        self.width = width
        self.register_buffer("inv_freq", torch.tensor(frequencies.geometric(width, theta)).float(), persistent=False)
        self.inv_freq: Tensor

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None].float() * self.inv_freq.float()  # [T, r/2]
        cos, sin = angles.cos(), angles.sin()
        turn = _turn_half if self.layout == "half" else _turn_interleaved
        return turn(q, cos, sin), turn(k, cos, sin)

    def pairs(self) -> list[tuple[int, int, float]]:
        half = self.width // 2
        frequency = self.inv_freq.tolist()
        if self.layout == "half":
            return [(i, i + half, frequency[i]) for i in range(half)]
        return [(2 * i, 2 * i + 1, frequency[i]) for i in range(half)]


def _turn_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    turned = ((a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype))
    return torch.cat((*turned, rest) if rest.shape[-1] else turned, dim=-1)


def _turn_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = 2 * cos.shape[-1]
    rotary, rest = x.split([width, x.shape[-1] - width], dim=-1)
    a, b = rotary[..., 0::2], rotary[..., 1::2]
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
