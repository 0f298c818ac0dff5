"""The contract of an attention, and what all share."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from newllm.attention.cache import LayerCache
from newllm.attention.kernels import Kernel, attend, attend_cached
from newllm.position.encoding import PositionEncoding


class Attention(nn.Module):
    """``forward(x [B, T, hidden], positions [T], encoding, cache) -> [B, T, hidden]``, causal.

    A subclass gives `project` and the linear layer `out`, or a `forward` of its own. Options stand before the ``*`` of
    ``__init__``; `hidden_size`, `heads`, `head_dim` and `rotates` (the layer's encoding turns q and k) are handed over
    by the model.

    observer: if set, it is called with the layer's "q_before", "k_before" (before rotation), "q", "k" (after it; both
    before scaling), each [B, heads, T, d], and with further tensors that the attention can show.
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
        """Width of the q and k that the encoding will be asked to rotate, from the node's options."""
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
        """The layer's auxiliary loss of the last forward pass in training, for each row [B]; None the second time."""
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
        """The same for queries at the end of the `length` tokens in the cache's storages k and v.

        unabsorbed: the part of the queries that a weight was absorbed into, before that.
        """
        bias = encoding.bias() if encoding is not None else None
        return attend_cached(q, k, v, length, bias, scale, self.kernel, unabsorbed)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, H D]."""
    return x.transpose(1, 2).flatten(2)


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Nothing: the values would be overwritten, and on the meta device they cost a second of imports."""


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """A linear layer whose weights are left for `newllm.model.init` to fill."""
    return _Linear(inputs, outputs, bias=bias)
