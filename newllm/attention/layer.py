"""The base class of all attentions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from newllm.attention.cache import LayerCache
from newllm.attention.kernels import Kernel, attend, attend_cached
from newllm.position.encoding import PositionEncoding


class Attention(nn.Module):
    """``forward(x [B, T, hidden], positions [T], encoding, cache) -> [B, T, hidden]``, causal.

    A subclass defines `project` and the linear layer `out`, or its own `forward`. Arguments before the ``*`` of
    ``__init__`` are options; the model passes `hidden_size`, `heads`, `head_dim` and `rotates` (whether the layer's
    encoding rotates q and k).

    observer: if set, called with a dict of the layer's "q_before" and "k_before" (before rotation), "q" and "k" (after
    it), each [B, heads, T, d] and not yet scaled, and of other tensors that the attention computes.
    """

    out: nn.Module  # [B, T, heads * width of a value] -> [B, T, hidden]

    def __init__(self, kernel: Kernel, *, hidden_size: int, heads: int, head_dim: int):
        super().__init__()
        self.kernel: Kernel = kernel
        self.hidden_size, self.heads, self.head_dim = hidden_size, heads, head_dim
        self.rotary_offset = 0  # first dim of q and k that the encoding sees
        self.observer: Callable[[dict[str, Tensor]], None] | None = None

    @staticmethod
    def rotary_width(options: dict[str, Any], head_dim: int) -> int:
        """Width of the q and k that the encoding rotates, from the options of this attention."""
        return head_dim

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, T, D], k [B, H or fewer, T, D] and v [B, as k, T, width], before rotation."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, positions: Tensor, encoding: PositionEncoding | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        q, k, v = self.project(x)
        q_before, k_before = q, k
        if encoding is not None:
            q, k = encoding.rotate(q, k, positions)
        if self.observer is not None:
            self.observer({"q_before": q_before, "k_before": k_before, "q": q, "k": k})
        scale = self.head_dim**-0.5
        if cache is None:
            out = self.attend(q, k, v, encoding, scale)
        else:
            k, v = cache.append(k, v)
            out = self.attend_cached(q, k, v, cache.length, encoding, scale)
        projected: Tensor = self.out(merge_heads(out))
        return projected

    def auxiliary(self) -> Tensor | None:
        """The auxiliary loss [B] of the last training forward pass; None if there is none, or at a second call."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, encoding: PositionEncoding | None, scale: float) -> Tensor:
        """Causal attention under the encoding's bias: [B, heads, T, width of v]."""
        bias = encoding.bias() if encoding is not None else None
        return attend(q, k, v, bias, scale, self.kernel)

    def attend_cached(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        length: int,
        encoding: PositionEncoding | None,
        scale: float,
        unabsorbed: Tensor | None = None,
    ) -> Tensor:
        """The same for queries that are the last of the `length` tokens in the cache's storages k and v.

        unabsorbed: the queries before a weight was absorbed into them.
        """
        bias = encoding.bias() if encoding is not None else None
        return attend_cached(q, k, v, length, bias, scale, self.kernel, unabsorbed)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, H D]."""
    return x.transpose(1, 2).flatten(2)


class InFloat32(nn.Module):
    """A norm computed in fp32 or wider, also under autocast."""

    def __init__(self, norm: nn.RMSNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


class _Linear(nn.Linear):
    def __init__(self, inputs: int, rows: Sequence[int], heads: int, bias: bool):
        super().__init__(inputs, heads * sum(rows), bias=bias)
        self.heads, self.rows = heads, tuple(rows)

    def reset_parameters(self) -> None:
        """Does nothing: `init_weights` sets the values, and computing some on the meta device imports for a second."""


def linear(inputs: int, outputs: int | Sequence[int], bias: bool = False, heads: int = 1) -> nn.Linear:
    """A linear layer without values, which `newllm.model.init.init_weights` sets.

    outputs: the rows of the weight; several numbers if it is several matrices in one, as in [d, d, d] for q | k | v.
    heads: how often these rows follow one another, head by head. Muon takes such matrices one by one.
    """
    return _Linear(inputs, [outputs] if isinstance(outputs, int) else outputs, heads, bias)
