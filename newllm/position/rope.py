"""Rotary position embedding."""

from typing import Any, Literal

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
        halves = self.layout == "half"
        return _Turn.apply(q, cos, sin, halves), _Turn.apply(k, cos, sin, halves)

    def pairs(self) -> list[tuple[int, int, float]]:
        half = self.width // 2
        frequency = self.inv_freq.tolist()
        if self.layout == "half":
            return [(i, i + half, frequency[i]) for i in range(half)]
        return [(2 * i, 2 * i + 1, frequency[i]) for i in range(half)]


class _Turn(torch.autograd.Function):
    """x [..., T, D], its first r dims turned; the gradient turns back, so that nothing but the angles is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, halves: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.halves = halves
        return _turned(x, cos, sin, halves)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _Turn.apply(grad_outputs[0], cos, -sin, ctx.halves), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, halves: bool) -> Tensor:
    half = cos.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if halves:
        first, second = slice(half), slice(half, 2 * half)
    else:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    exact = torch.promote_types(x.dtype, cos.dtype)
    a, b, cos, sin = x[..., first].to(exact), x[..., second].to(exact), cos.to(exact), sin.to(exact)
    out[..., first] = torch.addcmul(a * cos, b, sin, value=-1)
    out[..., second] = torch.addcmul(b * cos, a, sin)
    if 2 * half < x.shape[-1]:
        out[..., 2 * half :] = x[..., 2 * half :]
    return out
