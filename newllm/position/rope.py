"""Rotary position embedding with any frequencies."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from newllm.position.encoding import PositionEncoding
from newllm.position.frequencies.nodes import Node, scale, spectrum
from newllm.position.frequencies.spectrum import rotary_dims

Layout = Literal["half", "interleaved"]


class Rope(PositionEncoding):
    """RoPE: pair k of the first ``r = head_dim * rotary_pct`` dims of q and k rotates by ``position * inv_freq[k]``.

    Su et al. 2021, arXiv 2104.09864, has ``inv_freq[k] = theta ** (-2k / r)``, with the r rotary dims in the
    exponent, as in GPT-NeoX and Pythia. The dims beyond r are unchanged. Angles, cosines and sines are always fp32.

    theta: base of the frequencies, unless `frequencies` sets its own; None for a family without a base.
    frequencies: the family of the r/2 inverse frequencies: its name, a mapping with options, as in
    ``{family: sigmoid, steepness: 7}``, or the dotted path of your own function (newllm.position.frequencies.nodes).
    layout: "half" pairs dims (k, k + r/2) as GPT-NeoX and Llama do, "interleaved" pairs (2k, 2k + 1) as GPT-J and
    DeepSeek do: the same function up to a permutation of the dims.
    scaling: None, the name of an inference-time scaling, or a mapping ``{kind: yarn, factor: 8, …}``; without a factor
    it follows the length of the input, see `adapt`. A kind with a temperature multiplies cosines and sines by it, so
    the temperature affects only the rotary dims: not the others, nor the unrotated part of attention=mla.
    Cost: O(T r) per head. Kernel: plain causal attention. On MLA it rotates the decoupled key (`rope_dim` wide).
    """

    rotates = True

    def __init__(
        self,
        theta: float | None = 10000.0,
        frequencies: Node = "geometric",
        rotary_pct: float = 1.0,
        layout: Layout = "half",
        layers: str | list[int] = "all",
        scaling: Node | None = None,
        *,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        super().__init__(layers, num_layers=num_layers)
        self.layout = layout
        self.scaling = scaling
        self.seq_len = seq_len
        self.width = rotary_dims(head_dim, rotary_pct)
        trained = spectrum(frequencies, self.width, theta=theta, head_dim=head_dim, seq_len=seq_len)
        self.trained = tuple(trained.tolist())  # the spectrum before any scaling
        self.register_buffer("inv_freq", torch.empty(self.width // 2), persistent=False)
        self.register_buffer("temperature", torch.empty(()), persistent=False)
        self.inv_freq: Tensor  # [r/2], in use
        self.temperature: Tensor
        self._set_length(seq_len)

    def adapt(self, length: int) -> None:
        if self.scaling is not None:
            self._set_length(length)

    def _set_length(self, length: int) -> None:
        inv_freq, temperature = scale(np.array(self.trained), self.scaling, length=length, seq_len=self.seq_len)
        self.inv_freq.copy_(torch.tensor(inv_freq).float())
        self.temperature.fill_(temperature)

    def current_inv_freq(self) -> Tensor:
        """[r/2] fp32, the inverse frequencies after scaling."""
        return self.inv_freq.float()

    def cos_and_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of the angles at positions [T], times the temperature: [T, r/2] each, fp32."""
        angles = positions[:, None].float() * self.current_inv_freq()
        return angles.cos() * self.temperature, angles.sin() * self.temperature

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos_and_sin(positions)
        halves = self.layout == "half"
        return turn(q, cos, sin, halves), turn(k, cos, sin, halves)

    def pairs(self) -> list[tuple[int, int, float]]:
        half = self.width // 2
        frequency = self.current_inv_freq().tolist()
        if self.layout == "half":
            return [(i, i + half, frequency[i]) for i in range(half)]
        return [(2 * i, 2 * i + 1, frequency[i]) for i in range(half)]


def turn(x: Tensor, cos: Tensor, sin: Tensor, halves: bool) -> Tensor:
    """Rotate pair k of the first r dims of x [B, H, T, D] by the angle with cosine cos[..., k], k < r/2.

    halves: pairs are (k, k + r/2), else (2k, 2k + 1). Computed in the wider dtype of x and cos, returned in that of x.
    """
    if cos.requires_grad or sin.requires_grad:
        return _turned(x, cos, sin, halves)
    turned: Tensor = _Turn.apply(x, cos, sin, halves)
    return turned


class _Turn(torch.autograd.Function):
    """The gradient is the inverse rotation, so that only the angles are saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, halves: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.halves = halves
        return _turned(x, cos, sin, halves)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _Turn.apply(*grad_outputs, cos, -sin, ctx.halves), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, halves: bool) -> Tensor:
    half = cos.shape[-1]
    rotary, rest = x.split([2 * half, x.shape[-1] - 2 * half], -1)
    rotary = rotary.to(torch.promote_types(x.dtype, cos.dtype))
    cos, sin = cos.to(rotary.dtype), sin.to(rotary.dtype)
    a, b = rotary.chunk(2, -1) if halves else rotary.unflatten(-1, (half, 2)).unbind(-1)
    turned = [torch.addcmul(a * cos, b, -sin), torch.addcmul(b * cos, a, sin)]
    rotary = torch.cat(turned, -1) if halves else torch.stack(turned, -1).flatten(-2)
    return torch.cat((rotary.to(x.dtype), rest), -1) if rest.shape[-1] else rotary.to(x.dtype)
