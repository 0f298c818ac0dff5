"""Multi-head attention and its grouped forms."""

from typing import Literal

from torch import Tensor, nn

from newllm.attention.kernels import Kernel
from newllm.attention.layer import Attention, InFloat32, linear
from newllm.errors import ConfigError


class MultiHead(Attention):
    """Multi-head attention (Vaswani et al. 2017); grouped (GQA, Ainslie et al. 2023) when kv_heads < heads, MQA at 1.

    ``softmax(q k^T / sqrt(head_dim) + bias) v`` per head; query head h reads key head ``h // (heads / kv_heads)``.
    bias: the projections have biases: all of them, none, or "qkv", which leaves out that of the output (Qwen2).
    qk_norm: queries and keys are divided by their root mean square over a head and scaled, before they are rotated
    (Henry et al. 2020, arXiv 2010.04245, as Qwen3 has it); it has the model's norm_eps.

    The projection is fused, its rows in order q | k | v, each head by head.
    Cache per token and layer: 2 * kv_heads * head_dim numbers.
    """

    def __init__(
        self,
        kv_heads: int | None = None,
        bias: bool | Literal["qkv"] = True,
        kernel: Kernel = "auto",
        qk_norm: bool = False,
        *,
        hidden_size: int,
        heads: int,
        head_dim: int,
        norm_eps: float = 1e-6,
    ):
        super().__init__(kernel, hidden_size=hidden_size, heads=heads, head_dim=head_dim)
        self.kv_heads = heads if kv_heads is None else kv_heads
        if self.kv_heads <= 0 or heads % self.kv_heads:
            divisors = [n for n in range(1, heads + 1) if heads % n == 0]
            raise ConfigError(f"kv_heads must divide the {heads} heads: one of {divisors}; got {kv_heads}.")
        self.qkv = linear(hidden_size, [n * head_dim for n in (heads, self.kv_heads, self.kv_heads)], bool(bias))
        self.out = linear(heads * head_dim, hidden_size, bias is True)
        self.q_norm, self.k_norm = (
            InFloat32(nn.RMSNorm(head_dim, eps=norm_eps)) if qk_norm else nn.Identity() for _ in "qk"
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H + 2 Hk, T, D]
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return self.q_norm(q), self.k_norm(k), v
