"""xPos: rotary position embedding with decay."""

import math

import torch
from torch import Tensor

from newllm.checks import above
from newllm.position.frequencies.nodes import Node
from newllm.position.rope import Layout, Rope, turn

_MAX_EXPONENT = 70.0  # of a factor: fp32 and bf16 overflow at e^88, and products of q and k must stay below


class XPos(Rope):
    """xPos: RoPE whose pair i also decays (Sun et al. 2022, "A Length-Extrapolatable Transformer", arXiv 2212.10554).

        q_n = R(n w_i) q * z_i ** (n / scale_base)          k_m = R(m w_i) k * z_i ** (-m / scale_base)
        w_i = theta ** (-2i / r),  z_i = (i / (r/2) + gamma) / (1 + gamma),  i = 0 .. r/2 - 1

    so the score of pair i decays with distance as ``z_i ** ((n - m) / scale_base)``, fastest for the pairs that rotate
    fastest. It is LeX without its blockwise causal attention. scale_base: null means no decay, which is RoPE.

    A score depends only on distances, so n and m are counted from the middle of the training length, which keeps both
    factors near 1 in training; the origin is fixed, so that cached keys stay valid. Far from it the factors of q and k
    diverge (z_0 = 0.29 at the defaults: 1e17 and 1e-17 at position 16384). That costs no precision, since the relative
    precision of floating-point numbers does not change. The factors leave the range of fp32 and bf16 after
    ``70 scale_base / -ln z_0`` positions (28,608); longer inputs raise ConfigError. On MLA the decay, like the
    rotation, acts only on the decoupled key. Cost: O(T r) per head, as RoPE. Kernel: plain causal attention.
    """

    def __init__(
        self,
        theta: float | None = 10000.0,
        frequencies: Node = "geometric",
        rotary_pct: float = 1.0,
        scale_base: float | None = 512.0,
        gamma: float = 0.4,
        layout: Layout = "half",
        layers: str | list[int] = "all",
        scaling: Node | None = None,
        *,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(theta, frequencies, rotary_pct, layout, layers, scaling, **sizes)
        above("gamma", gamma, 0, 0.4)
        if scale_base is not None:
            above("scale_base", scale_base, 0, 512)
        half = self.width // 2
        rates = [math.log((i / half + gamma) / (1 + gamma)) / (scale_base or math.inf) for i in range(half)]
        self.register_buffer("log_decay", torch.tensor(rates, dtype=torch.float32), persistent=False)
        self.log_decay: Tensor
        self.origin = seq_len // 2
        if rates[0]:
            self.limit = self.origin + int(_MAX_EXPONENT / -rates[0])

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos_and_sin(positions)  # [T, r/2]
        factor = ((positions - self.origin)[:, None].float() * self.log_decay.float()).exp()
        halves = self.layout == "half"
        return turn(q, cos * factor, sin * factor, halves), turn(k, cos / factor, sin / factor, halves)
