"""MLPs of a transformer block."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from newllm.attention.layer import linear


class Gelu(nn.Module):
    """``W_2 gelu(W_1 x)`` (Hendrycks & Gimpel 2016, arXiv 1606.08415).

    approximate: "none" is the exact (erf) GELU, "tanh" the paper's approximation, which GPT-2 has.
    """

    def __init__(self, hidden_size: int, mlp_size: int, bias: bool, approximate: Literal["none", "tanh"] = "none"):
        super().__init__()
        self.approximate = approximate
        self.up = linear(hidden_size, mlp_size, bias)
        self.down = linear(mlp_size, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    """``W_down (silu(W_gate x) * W_up x)`` (Shazeer 2020, arXiv 2002.05202); gate and up are one matrix."""

    def __init__(self, hidden_size: int, mlp_size: int, bias: bool):
        super().__init__()
        self.gate_up = linear(hidden_size, [mlp_size] * 2, bias)
        self.down = linear(mlp_size, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
