"""Fourier position embedding."""

import math

import torch
from torch import Tensor

from newllm.checks import at_least
from newllm.errors import ConfigError
from newllm.position.frequencies.nodes import Node
from newllm.position.rope import Layout, Rope, turn


class Fope(Rope):
    """FoPE: each rotary pair is a Fourier series, not a single wave (Hua et al. 2024, arXiv 2412.17739, ICML 2025).

        x_k (a complex number per pair)  ->  x_k * (C_k(n) + i S_k(n))
        C_k(n) = cos(w_k n) + sum_j a_jk cos(w_j n),   S_k(n) = sin(w_k n) + sum_j b_jk sin(w_j n)

    over the F frequencies w_j of RoPE that complete a turn within the training length (w >= 2 pi / seq_len, the family
    "whole_turns"). The other frequencies, never trained on a whole turn, become 0: ``C = 1`` and ``S = 0``.

    It is published in two forms. With `separate_basis`, the form of the authors' code, a and b are drawn independently;
    without it, the form of the paper, one coefficient serves both waves (b = a).

    The coefficients are drawn once and not learned, for each key head (shared by its group of queries; MLA's rotary key
    uses the first set), the same for q and k. They are normal with standard deviation ``gain * sqrt(2 / (F (F + H)))``
    for H heads, as in the code (fourier_init=eye_xavier_norm, separate_head, learnable=false; torch's Xavier rule on a
    tensor [H, F, F]), which uses gains of 0.3, 0.4 and 0.6 for 60M, 180M and 1.2B parameters. It differs from that code
    in three ways: all layers share one draw; all F pairs rotate (there, at most half of a head's pairs); and the other
    pairs have the paper's zero frequency (there their sine is 1, which no frequency gives).

    The coefficients come from the model's seed and are saved with its weights. With gain > 0 the map is not a rotation:
    scores depend, weakly, on both positions and not only on their difference.
    Cost: O(T r) per head and a product [T, r/2] x [r/2, r/2] per head for the series. Kernel: plain causal attention.
    """

    def __init__(
        self,
        theta: float | None = 10000.0,
        frequencies: Node = "whole_turns",
        rotary_pct: float = 1.0,
        gain: float = 0.3,
        separate_basis: bool = True,
        layout: Layout = "half",
        layers: str | list[int] = "all",
        scaling: Node | None = None,
        *,
        heads: int,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(theta, frequencies, rotary_pct, layout, layers, scaling, **sizes)
        at_least("gain", gain, 0, 0.3)
        self.waves = sum(frequency > 0 for frequency in self.trained)  # F
        if not self.waves:
            raise ConfigError(f"pos_encoding=fope: no wave fits into seq_len={seq_len}; use seq_len=7 or more.")
        self.gain, self.relative = gain, gain == 0
        identity = torch.eye(self.width // 2).repeat(heads, 1, 1)  # [H, from frequency, to pair]
        self.register_buffer("cos_mix", identity)
        self.register_buffer("sin_mix", identity.clone() if separate_basis else None)
        self.cos_mix: Tensor
        self.sin_mix: Tensor | None

    def initial(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        if name not in ("cos_mix", "sin_mix"):
            return None
        heads, pairs, _ = shape
        f = self.waves
        deviation = self.gain * math.sqrt(2 / (f * (f + heads)))
        mix = torch.eye(pairs).repeat(heads, 1, 1)
        mix[:, :f, :f] += torch.empty(heads, f, f).normal_(0.0, deviation, generator=generator)
        return mix

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos_and_sin(positions)  # [T, r/2]
        with torch.autocast(cos.device.type, enabled=False):
            key_heads = k.shape[1]
            cos = cos @ self.cos_mix[:key_heads].to(cos.dtype)  # [Hk, T, r/2]
            sin_mix = self.cos_mix if self.sin_mix is None else self.sin_mix
            sin = sin @ sin_mix[:key_heads].to(sin.dtype)
        halves, group = self.layout == "half", q.shape[1] // key_heads
        q = turn(q, cos.repeat_interleave(group, dim=0), sin.repeat_interleave(group, dim=0), halves)
        return q, turn(k, cos, sin, halves)
