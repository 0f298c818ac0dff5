"""Causal attention of new tokens over a cache: two matrix products per layer that read the cache where it lies.

The cache's storage [B, Hk, S, D] is longer than the tokens it holds. It is multiplied whole, because a matrix library
copies a view with gaps between its heads before it multiplies it; the keys after the last token are masked as every
query's future is.
"""

import torch
from torch import Tensor

from newllm.attention import kernels
from newllm.position.bias import Bias, LinearBias

_BLOCK = 2**20  # scores worked on at a time: 4 MB in fp32 stay in a CPU's cache


def attend(
    q: Tensor, k: Tensor, v: Tensor, length: int, bias: Bias | None, scale: float, kernel: kernels.Kernel = "auto"
) -> Tensor:
    """``softmax(q k^T * scale + bias, causal) v``: [B, H, Tq, Dv] in v's dtype.

    q [B, H, Tq, D] stand at the end of the `length` tokens that the storages k [B, Hk, S, D] and v [B, Hk, S, Dv] hold.
    Queries without a past (a prompt) go by the kernel that training has; one query, or more of them behind a past, by
    products: all heads of one query together, blocks of many queries head by head.
    """
    queries = q.shape[2]
    if queries == length:
        return kernels.attend(q, k[:, :, :length], v[:, :, :length], bias, scale, kernel)
    with torch.autocast(q.device.type, enabled=False):
        if queries == 1:
            return _products(q, k, v, _bias(q, k, length - 1, bias), scale)
        stacked = q.shape[1] // k.shape[1]  # query heads of a key head
        size = max(1, _BLOCK // (q.shape[0] * stacked * k.shape[2]))
        blocks = q.split(size, dim=2)
        firsts = range(length - queries, length, size)
        return torch.cat(
            [_by_head(part, k, v, first, bias, scale) for part, first in zip(blocks, firsts, strict=True)], 2
        )


def _by_head(q: Tensor, k: Tensor, v: Tensor, first: int, bias: Bias | None, scale: float) -> Tensor:
    """Queries that stand at `first` and on, one key head after another."""
    added = _bias(q, k, first, bias)
    per_head = added.expand(*added.shape[:-3], q.shape[1], -1, -1)
    stacked = q.shape[1] // k.shape[1]
    parts = zip(q.split(stacked, 1), k.split(1, 1), v.split(1, 1), per_head.split(stacked, -3), strict=True)
    return torch.cat([_products(*part, scale) for part in parts], dim=1)


def _products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """q [B, H, Tq, D] over k [B, Hk, S, D] and v [B, Hk, S, Dv] with bias [1 or H, Tq, S], -inf where masked.

    Queries that share a key head are stacked, so MQA and absorbed MLA read the cache once for all heads.
    """
    batch, heads, queries, width = q.shape
    groups, keys = k.shape[1], k.shape[2]
    stacked = q.reshape(batch, groups, -1, width)  # [B, Hk, (H / Hk) Tq, D]
    # One pass over the products: to fp32 (or wider), scaled, the bias added.
    scores = torch.add(bias, _scores(stacked, k).reshape(batch, heads, queries, keys), alpha=scale)
    weights = scores.softmax(-1).to(v.dtype).reshape(batch, groups, -1, keys)
    return (weights @ v).reshape(batch, heads, queries, -1)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """``q k^T``. oneDNN's batched bf16 product is several times faster with the long side first."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return (k @ q.mT).mT
    return q @ k.mT


def _bias(q: Tensor, k: Tensor, first: int, bias: Bias | None) -> Tensor:
    """[1 or H, Tq, S] in fp32 (fp64 as q) for queries that stand at `first` and on; -inf for keys after a query."""
    last = first + q.shape[2] - 1
    j = torch.arange(k.shape[2], device=k.device)
    i = j[first : last + 1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    if isinstance(bias, LinearBias):
        # Counted back from the last query: small numbers where the weight is.
        added = (bias.slopes[..., None, None] * (j - last)).to(dtype)
    elif bias is not None:
        added = bias.matrix(i, j).to(dtype)
    else:
        added = torch.zeros(1, 1, 1, dtype=dtype, device=q.device)
    return added.masked_fill(j > i[:, None], float("-inf"))
