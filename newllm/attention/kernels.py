"""Causal attention under each kind of bias, by the fastest path that is exact.

Every path computes ``softmax(q k^T * scale + bias, causal) v`` for q [B, H, Tq, D], k [B, Hk, Tk, D], v [B, Hk, Tk, Dv]
(Hk divides H; query i stands at key Tk - Tq + i) and returns [B, H, Tq, Dv] in v's dtype.

    bias      Tq == Tk (training, prefill)                                        after a cache
    none      fused causal; on CPU in bf16 blocked                                plain, of many queries blocked
    linear    digits; on CPU in fp32 row (fp32 row mask [B, H, 1, Tk] + causal),  the same: a row is added to
              in bf16 blocked                                                     the scores
    matrix    blocked                                                             the same
    score     blocked                                                             the same

`attend` has k and v as they are, `attend_cached` in the storage of a cache.

In fp32 on CPU `blocked` also serves short rows whose D and Dv differ, which the fused kernel wants padded.
Up to 128 tokens `plain` stands in for `blocked`; nothing else ever holds Tq x Tk numbers. For a linear bias that is
so since softmax drops what is constant along a row: ``-m (i - j)`` is ``m j``, a row. As `row` it is a broadcast mask
beside is_causal; as `digits` it is a product of a few extra dims of q and k (FlashBias, arXiv 2505.12044), for kernels
that take no mask; `blocked` adds it block by block (`newllm.attention.blocked`).
"""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.attention.blocked import blocked
from newllm.position.bias import Bias, LinearBias, ScoreBias, positional_part

Kernel = Literal["auto", "row", "digits", "blocked", "plain"]
_DIGIT_DIMS = 8  # four are used; fused kernels want the width to be a multiple of 8
_BASE = 256  # digits of this base are exact in bf16
_FEW = 16  # queries after a cache up to which all their scores are made at once
_PADDED = 1024  # tokens up to which, in fp32 on CPU, it is better not to pad narrow values for the fused kernel
_SHORT = 128  # tokens up to which keeping all scores is faster on CPU than making them again
_CACHED_SCORES = 2**20  # scores over a cache worked on at a time: 4 MB in fp32 stay in a CPU's cache


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float, kernel: Kernel = "auto") -> Tensor:
    """Causal attention as the module describes. kernel: "auto", or the path to take (for comparison)."""
    # Autocast would round the fp32 row mask to bf16, an error of units at a position of some thousands.
    with torch.autocast(q.device.type, enabled=False):
        path = _path(q, k, v, bias) if kernel == "auto" else kernel
        if path == "plain":
            return plain(q, k, v, bias, scale)
        if path == "blocked" or q.shape[2] != k.shape[2] or not isinstance(bias, LinearBias | None):
            if torch.compiler.is_compiling():
                from newllm.attention.blocked_operator import blocked_in_graph  # a second's import

                return blocked_in_graph(q, k, v, bias, scale)
            return blocked(q, k, v, bias, scale)
        if bias is None:
            return _fused(q, k, v, scale, mask=None)
        return (digits if path == "digits" else row)(q, k, v, bias, scale)


def _path(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> Kernel:
    if q.shape[2] != k.shape[2]:
        return "plain" if q.shape[2] <= _FEW else "blocked"
    length, padded = q.shape[2], q.shape[-1] != v.shape[-1]
    half = q.dtype in (torch.bfloat16, torch.float16)
    general = not isinstance(bias, LinearBias | None)
    if general or (q.device.type == "cpu" and (half or (padded and length <= _PADDED))):
        return "plain" if length <= _SHORT else "blocked"
    if bias is not None and torch.compiler.is_compiling():
        return "blocked" if q.device.type == "cpu" else "digits"  # without the probe, which is no part of the graph
    return "row" if bias is None or supports_row_bias(q.device.type, q.dtype) else "digits"


def row(q: Tensor, k: Tensor, v: Tensor, bias: LinearBias, scale: float) -> Tensor:
    """Fused attention with the bias as a row mask; O(Tk) memory."""
    return _fused(q, k, v, scale, mask=_row(bias, k.shape[2]).to(torch.promote_types(q.dtype, torch.float32)))


def digits(q: Tensor, k: Tensor, v: Tensor, bias: LinearBias, scale: float) -> Tensor:
    """Fused attention without a mask: ``m j = scale * (q+ . k+)`` for a few dims appended to q and k.

    j is written in base 256 (exact in bf16), m / scale as the sum of two numbers of q's dtype, so that slopes which
    bf16 does not hold keep 16 bits.
    """
    heads, length = q.shape[1], k.shape[2]
    j = torch.arange(length, device=k.device)
    high, low = (j // _BASE).to(k.dtype), (j % _BASE).to(k.dtype)
    slope = (bias.slopes / scale).expand(*bias.slopes.shape[:-1], heads)  # [H] or [B, H]
    slope_high = slope.to(q.dtype)
    slope_low = (slope - slope_high.float()).to(q.dtype)
    zeros = torch.zeros_like(slope_high)
    q_dims = torch.stack(
        [slope_high * _BASE, slope_low * _BASE, slope_high, slope_low] + [zeros] * (_DIGIT_DIMS - 4), -1
    )
    k_dims = torch.stack([high, high, low, low] + [torch.zeros_like(high)] * (_DIGIT_DIMS - 4), -1)
    q = torch.cat((q, q_dims[..., None, :].expand(*q.shape[:3], -1)), dim=-1)
    k = torch.cat((k, k_dims[None, None].expand(*k.shape[:3], -1)), dim=-1)
    return _fused(q, k, v, scale, mask=None)


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float) -> Tensor:
    """Two matrix products and a softmax: the reference, and the fastest way for few queries.

    Queries that share a key head are stacked, so MQA and absorbed MLA read the cache once for all heads.
    """
    batch, heads, queries, _ = q.shape
    groups, keys = k.shape[1], k.shape[2]
    stacked = q.reshape(batch, groups, -1, q.shape[-1])  # [B, Hk, (H / Hk) Tq, D]
    products = (stacked @ k.transpose(-1, -2)).reshape(batch, heads, queries, keys)
    # One pass over the products: to fp32 (or wider), scaled, the future masked.
    scores = torch.add(_causal(q, k), products, alpha=scale)
    if isinstance(bias, ScoreBias):
        scores += bias.read(q, products.to(scores.dtype) * scale, *_positions(q, k))
    rest = positional_part(bias)
    if rest is not None:
        scores += _row(rest, keys) if isinstance(rest, LinearBias) else rest.matrix(*_positions(q, k))
    weights = scores.softmax(-1).to(v.dtype).reshape(batch, groups, -1, keys)
    return (weights @ v).reshape(batch, heads, queries, -1)


@functools.cache
def supports_row_bias(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the fused kernel accepts a row mask beside is_causal, which is undocumented; tried on eight tokens.

    Kernels that refuse it raise an error; a kernel that ignores or misreads one of the two gives other numbers.
    """
    if device_type != "cpu":
        return False  # flash attention on CUDA takes no mask, others expand it to T x T
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 8, 8, generator=generator).to(dtype) for _ in range(3))
    bias = LinearBias(torch.tensor([0.5, 0.25]))
    try:
        return torch.allclose(row(q, k, v, bias, 0.35), plain(q, k, v, bias, 0.35), atol=8 * torch.finfo(dtype).eps)
    except RuntimeError:
        return False


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """torch's fused causal attention; it wants q, k and v of one width, and zeros change nothing."""
    width, value_width = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    if q.shape[-1] < width:
        q, k = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k))
    if value_width < width:
        v = F.pad(v, (0, width - value_width))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[..., :value_width]


def _row(bias: LinearBias, keys: int) -> Tensor:
    """[B or 1, H or 1, 1, Tk] fp32. Counted back from the last key: small numbers where the weight is."""
    j = torch.arange(1 - keys, 1, device=bias.slopes.device, dtype=torch.float32)
    row = bias.slopes[..., None, None] * j
    return row if row.dim() == 4 else row[None]


def _positions(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    j = torch.arange(k.shape[2], device=k.device)
    return j[k.shape[2] - q.shape[2] :], j


def _causal(q: Tensor, k: Tensor) -> Tensor:
    """[Tq, Tk]: 0, or -inf where the key stands after the query; fp32, or fp64 as q."""
    i, j = _positions(q, k)
    mask = torch.zeros(len(i), len(j), dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    return mask.masked_fill_(j[None, :] > i[:, None], float("-inf"))


# --- over a cache -----------------------------------------------------------------------------------------------------


def attend_cached(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: int,
    bias: Bias | None,
    scale: float,
    kernel: Kernel = "auto",
    unabsorbed: Tensor | None = None,
) -> Tensor:
    """``softmax(q k^T * scale + bias, causal) v``: [B, H, Tq, Dv] in v's dtype.

    q [B, H, Tq, D] stand at the end of the `length` tokens that the storages k [B, Hk, S, D] and v [B, Hk, S, Dv] hold;
    for queries behind a past, v may also be [B, 1, S, Dv], one for all heads.
    The storages are longer than the tokens they hold. They are multiplied whole, because a matrix library copies a view
    with gaps between its heads before it multiplies it; the keys after the last token are masked as every query's
    future is. Queries without a past (a prompt) go by the kernel that training has; one query, or more of them behind a
    past, by products: all heads of one query together, blocks of many queries head by head.

    unabsorbed: where a weight was absorbed into q, what stood in its place [B, H, Tq, …], for biases that read queries.
    """
    queries, key_heads = q.shape[2], k.shape[1]
    shown = q if unabsorbed is None else unabsorbed
    if queries == length and (shown is q or not isinstance(bias, ScoreBias)):
        return attend(q, k[:, :, :length], v[:, :, :length], bias, scale, kernel)
    with torch.autocast(q.device.type, enabled=False):
        if queries == 1:
            added = _storage_bias(q, k, length - 1, bias)
            return _over_storage(q, k, v, added, bias, shown, length - 1, scale)
        group = q.shape[1] // key_heads  # query heads of a key head
        size = max(1, _CACHED_SCORES // (q.shape[0] * group * k.shape[2]))
        blocks = []
        for start in range(0, queries, size):
            block, first = q[:, :, start : start + size], length - queries + start
            added = _storage_bias(block, k, first, bias)
            added = added.expand(*added.shape[:-3], q.shape[1], -1, -1)
            per_head = []
            for head in range(key_heads):
                heads = slice(head * group, (head + 1) * group)
                values = v[:, head : head + 1] if v.shape[1] > 1 else v
                seen = shown[:, heads, start : start + size]
                keys, of_heads = k[:, head : head + 1], added[..., heads, :, :]
                per_head.append(_over_storage(block[:, heads], keys, values, of_heads, bias, seen, first, scale))
            blocks.append(torch.cat(per_head, 1))
        return torch.cat(blocks, 2)


def _over_storage(
    q: Tensor, k: Tensor, v: Tensor, added: Tensor, bias: Bias | None, shown: Tensor, first: int, scale: float
) -> Tensor:
    """q [B, H, Tq, D], at positions `first` and on, over k [B, Hk, S, D] and v [B, Hk or 1, S, Dv].

    added [1 or H, Tq, S]: what `_storage_bias` gives. shown: the queries for a bias that reads them. Queries that share
    a key head (or the one value head) are stacked, so MQA and absorbed MLA read the cache once for all heads.
    """
    batch, heads, queries, width = q.shape
    groups, keys = k.shape[1], k.shape[2]
    stacked = q.reshape(batch, groups, -1, width)  # [B, Hk, (H / Hk) Tq, D]
    products = _query_products(stacked, k).reshape(batch, heads, queries, keys)
    # One pass over the products: to fp32 (or wider), scaled, the bias added.
    scores = torch.add(added, products, alpha=scale)
    if isinstance(bias, ScoreBias):
        j = torch.arange(keys, device=k.device)
        scores += bias.read(shown, products.to(scores.dtype) * scale, j[first : first + queries], j)
    weights = scores.softmax(-1).to(v.dtype).reshape(batch, v.shape[1], -1, keys)
    return (weights @ v).reshape(batch, heads, queries, -1)


def _query_products(q: Tensor, k: Tensor) -> Tensor:
    """``q k^T``. oneDNN's batched bf16 product is several times faster with the long side first."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return (k @ q.mT).mT
    return q @ k.mT


def _storage_bias(q: Tensor, k: Tensor, first: int, whole: Bias | None) -> Tensor:
    """[1 or H, Tq, S] in fp32 (fp64 as q) for queries that stand at `first` and on; -inf for keys after a query."""
    bias = positional_part(whole)
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
