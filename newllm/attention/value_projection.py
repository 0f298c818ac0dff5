"""Multi-head attention with a smaller cache for values: V-DProj (github.com/rato-tokyo/new-llm, December 2025).

Queries and keys are those of multi-head attention. `CompressedValues` passes values of full width through a narrow
layer and restores them; `NarrowValues` projects to narrow values directly.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.attention.cache import LayerCache
from newllm.attention.kernels import Kernel
from newllm.attention.layer import Attention, linear, merge_heads
from newllm.checks import at_least
from newllm.errors import ConfigError
from newllm.position.encoding import PositionEncoding


class CompressedValues(Attention):
    """Values restored from a code c of value_dim numbers, shared by all heads (the old V-DProj).

        q, k, v = W_qkv x          c = W_c v + b_c          v' = W_r c + b_r          out = W_o [A_h v'_h]_h

    where v holds the values of all heads, H * D wide. Training and decoding both attend to the restored v'; v is only
    the input of the code, and the auxiliary loss draws the two together.

    The cache holds k and c: ``H D + value_dim`` numbers per token and layer. A decoding step restores no values: the
    rows of A sum to 1, so ``A_h (c W_r,h + b_r,h) = (A_h c) W_r,h + b_r,h``. For many new tokens, restoring v' of all
    cached tokens takes fewer multiplications (see `absorbs`).

    value_dim: width of c; None is five eighths of H * D, as published (320 of 512). reconstruction_weight: training
    adds to the loss this times the mean over layers of MSE(v', v), with v not detached.
    """

    def __init__(
        self,
        value_dim: int | None = None,
        bias: bool = True,
        reconstruction_weight: float = 0.1,
        kernel: Kernel = "auto",
        *,
        hidden_size: int,
        heads: int,
        head_dim: int,
    ):
        super().__init__(kernel, hidden_size=hidden_size, heads=heads, head_dim=head_dim)
        width = heads * head_dim
        self.value_dim = _default_value_dim(heads, head_dim) if value_dim is None else value_dim
        if not 0 < self.value_dim <= width:
            raise ConfigError(
                f"attention.value_dim must be from 1 to the width of the values, {width}, as in "
                f"attention.value_dim={_default_value_dim(heads, head_dim)}; got {value_dim}."
            )
        at_least("attention.reconstruction_weight", reconstruction_weight, 0, 0.1)
        self.reconstruction_weight = reconstruction_weight
        self.qkv = linear(hidden_size, [width] * 3, bias)  # rows: q | k | v, each head by head
        self.compress = linear(width, self.value_dim, bias)
        self.restore = linear(self.value_dim, width, bias)
        self.out = linear(width, hidden_size, bias)
        self._error: Tensor | None = None

    def forward(
        self, x: Tensor, positions: Tensor, encoding: PositionEncoding | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        width = self.heads * self.head_dim
        qk, v = self.qkv(x).split([2 * width, width], dim=-1)
        q, k = qk.unflatten(-1, (-1, self.head_dim)).transpose(1, 2).split(self.heads, dim=1)  # [B, H, T, D] each
        q_before, k_before = q, k
        if encoding is not None:
            q, k = encoding.rotate(q, k, positions)
        code = self.compress(v)  # [B, T, value_dim]
        scale = self.head_dim**-0.5
        restored = self.restore(code) if cache is None else None  # [B, T, H D]
        if self.observer is not None:
            observed = {"q_before": q_before, "k_before": k_before, "q": q, "k": k, "latent": code}
            self.observer(observed if restored is None else {**observed, "value": v, "restored": restored})
        if restored is not None:
            wanted = self.training and self.reconstruction_weight > 0
            self._error = reconstruction_error(restored, v) if wanted else None
            return self._output(self.attend(q, k, self._per_head(restored), encoding, scale))
        assert cache is not None
        k, codes = cache.append(k, code[:, None])  # [B, H, S, D], [B, 1, S, value_dim]
        queries, length = x.shape[1], cache.length
        if queries == length or not self.absorbs(queries):
            v = self._per_head(self.restore(codes[:, 0]))
            return self._output(self.attend_cached(q, k, v, length, encoding, scale))
        context = self.attend_cached(q, k, codes, length, encoding, scale)  # [B, H, T, value_dim]
        per_head = self.restore.weight.unflatten(0, (self.heads, -1))  # [H, D, value_dim]
        out = torch.matmul(context, per_head.mT)
        if self.restore.bias is not None:
            out = out + self.restore.bias.unflatten(0, (self.heads, 1, -1))
        return self._output(out)

    def absorbs(self, queries: int) -> bool:
        """Whether attending to codes takes fewer multiplications than restoring values, for this many new tokens.

        Per cached token and head, restoring costs ``value_dim D`` multiplications, and attending to codes costs
        ``value_dim - D`` more for each query.
        """
        return queries * (self.value_dim - self.head_dim) <= self.value_dim * self.head_dim

    def auxiliary(self) -> Tensor | None:
        error, self._error = self._error, None
        return None if error is None else self.reconstruction_weight * error

    def _per_head(self, v: Tensor) -> Tensor:
        """[B, S, H D] -> [B, H, S, D]."""
        return v.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _output(self, out: Tensor) -> Tensor:
        """[B, H, T, D] -> [B, T, hidden]."""
        projected: Tensor = self.out(merge_heads(out))
        return projected

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the error of the last forward pass, since a tensor with a gradient history cannot be copied."""
        return {**self.__dict__, "_error": None}


class NarrowValues(Attention):
    """Heads with queries and keys of width D and values of width value_dim / H (the new V-DProj).

        q, k = W_q x, W_k x (H * D each)          v = W_v x (value_dim)          out = W_o [A_h v_h]_h

    The published layer has separate matrices for q, k and v; here they are one matrix with rows q | k | v.
    Cache per token and layer: ``H D + value_dim`` numbers.

    value_dim: total width of the values of all heads; None is five eighths of H * D, as published (320 of 512).
    """

    def __init__(
        self,
        value_dim: int | None = None,
        bias: bool = True,
        kernel: Kernel = "auto",
        *,
        hidden_size: int,
        heads: int,
        head_dim: int,
    ):
        super().__init__(kernel, hidden_size=hidden_size, heads=heads, head_dim=head_dim)
        self.value_dim = _default_value_dim(heads, head_dim) if value_dim is None else value_dim
        if self.value_dim <= 0 or self.value_dim % heads:
            near = max(1, round(self.value_dim / heads)) * heads
            raise ConfigError(
                f"attention.value_dim must be a multiple of the {heads} heads, as in attention.value_dim={near}; "
                f"got {value_dim}."
            )
        width = heads * head_dim
        self.qkv = linear(hidden_size, [width, width, self.value_dim], bias)
        self.out = linear(self.value_dim, hidden_size, bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        width = self.heads * self.head_dim
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).split([width, width, self.value_dim], dim=-1)
        )  # [B, H, T, D] twice, [B, H, T, value_dim / H]
        return q, k, v


def reconstruction_error(restored: Tensor, value: Tensor) -> Tensor:
    """Mean squared error [B] of each row of restored values against the values [B, T, H D], in fp32."""
    return F.mse_loss(restored.float(), value.float(), reduction="none").mean(dim=(1, 2))


def _default_value_dim(heads: int, head_dim: int) -> int:
    """The default value_dim: five eighths of H * D, rounded down to the same width for every head."""
    return heads * max(1, head_dim * 5 // 8)
