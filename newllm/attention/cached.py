"""Causal attention of new tokens over a cache: two matrix products per layer that read the cache where it lies.

The cache's storage [B, Hk, S, D] is longer than the tokens it holds. It is multiplied whole, because a matrix library
copies a view with gaps between its heads before it multiplies it; the keys after the last token are masked as every
query's future is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from newllm.attention import kernels
from newllm.position.bias import Bias, LinearBias, ScoreBias, by_positions

_BLOCK = 2**20  # scores worked on at a time: 4 MB in fp32 stay in a CPU's cache


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: int,
    bias: Bias | None,
    scale: float,
    kernel: kernels.Kernel = "auto",
    unabsorbed: Tensor | None = None,
) -> Tensor:
    """``softmax(q k^T * scale + bias, causal) v``: [B, H, Tq, Dv] in v's dtype.

    q [B, H, Tq, D] stand at the end of the `length` tokens that the storages k [B, Hk, S, D] and v [B, Hk, S, Dv] hold;
    for queries behind a past, v may also be [B, 1, S, Dv], one for all heads.
    Queries without a past (a prompt) go by the kernel that training has; one query, or more of them behind a past, by
    products: all heads of one query together, blocks of many queries head by head.

    unabsorbed: where a weight was absorbed into q, what stood in its place [B, H, Tq, …], for biases that read queries.
    """
    queries = q.shape[2]
    shown = q if unabsorbed is None else unabsorbed
    if queries == length and (shown is q or not isinstance(bias, ScoreBias)):
        return kernels.attend(q, k[:, :, :length], v[:, :, :length], bias, scale, kernel)
    with torch.autocast(q.device.type, enabled=False):
        if queries == 1:
            return _products(q, k, v, _bias(q, k, length - 1, bias), scale, _reader(bias, shown, length - 1))
        stacked = q.shape[1] // k.shape[1]  # query heads of a key head
        size = max(1, _BLOCK // (q.shape[0] * stacked * k.shape[2]))
        blocks = zip(q.split(size, 2), shown.split(size, 2), range(length - queries, length, size), strict=True)
        return torch.cat([_by_head(*block, k, v, bias, scale) for block in blocks], 2)


def _by_head(q: Tensor, shown: Tensor, first: int, k: Tensor, v: Tensor, bias: Bias | None, scale: float) -> Tensor:
    """Queries that stand at `first` and on, one key head after another."""
    added = _bias(q, k, first, bias)
    per_head = added.expand(*added.shape[:-3], q.shape[1], -1, -1)
    stacked = q.shape[1] // k.shape[1]
    values = v.split(1, 1) if v.shape[1] > 1 else [v] * k.shape[1]
    parts = zip(q.split(stacked, 1), k.split(1, 1), values, per_head.split(stacked, -3), strict=True)
    seen = (_reader(bias, part, first) for part in shown.split(stacked, 1))
    return torch.cat([_products(*part, scale, read) for part, read in zip(parts, seen, strict=True)], dim=1)


def _products(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, read: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """q [B, H, Tq, D] over k [B, Hk, S, D] and v [B, Hk or 1, S, Dv] with bias [1 or H, Tq, S], -inf where masked.

    Queries that share a key head (or the one value head) are stacked, so MQA and absorbed MLA read the cache once for
    all heads.
    read: what else is added, of the scaled scores.
    """
    batch, heads, queries, width = q.shape
    groups, keys = k.shape[1], k.shape[2]
    stacked = q.reshape(batch, groups, -1, width)  # [B, Hk, (H / Hk) Tq, D]
    products = _scores(stacked, k).reshape(batch, heads, queries, keys)
    # One pass over the products: to fp32 (or wider), scaled, the bias added.
    scores = torch.add(bias, products, alpha=scale)
    if read is not None:
        scores += read(products.to(scores.dtype) * scale)
    weights = scores.softmax(-1).to(v.dtype).reshape(batch, v.shape[1], -1, keys)
    return (weights @ v).reshape(batch, heads, queries, -1)


def _reader(bias: Bias | None, q: Tensor, first: int) -> Callable[[Tensor], Tensor] | None:
    """Scaled scores of the queries q that stand at `first` and on -> what the bias adds after a look at them."""
    if not isinstance(bias, ScoreBias):
        return None
    given = bias

    def read(scores: Tensor) -> Tensor:
        j = torch.arange(scores.shape[-1], device=scores.device)
        return given.read(q, scores, j[first : first + scores.shape[-2]], j)

    return read


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """``q k^T``. oneDNN's batched bf16 product is several times faster with the long side first."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return (k @ q.mT).mT
    return q @ k.mT


def _bias(q: Tensor, k: Tensor, first: int, whole: Bias | None) -> Tensor:
    """[1 or H, Tq, S] in fp32 (fp64 as q) for queries that stand at `first` and on; -inf for keys after a query."""
    bias = by_positions(whole)
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
