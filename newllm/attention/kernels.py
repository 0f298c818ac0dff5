"""Causal attention: the fastest exact kernel for each kind of bias.

Every kernel computes ``softmax(q k^T * scale + bias, causal) v`` for q [B, H, Tq, D], k [B, Hk, Tk, D], v [B, Hk, Tk,
Dv] (Hk divides H; query i stands at key Tk - Tq + i) and returns [B, H, Tq, Dv] in v's dtype.

    bias      Tq == Tk (training, prompts)                             Tq < Tk (after a cache)
    none      fused; on CPU in bf16 blocked                            plain up to 16 queries, then blocked
    linear    digits; on CPU in fp32 row, in bf16 blocked              the same
    matrix    blocked                                                  the same
    score     blocked                                                  the same

`attend` takes k and v as tensors of Tk tokens, `attend_cached` takes the longer storage of a cache.

In fp32 on CPU `blocked` also serves short rows whose D and Dv differ, which would need padding for the fused kernel.
Up to 128 tokens `plain` replaces `blocked`, and on CPU the others; no other kernel stores Tq x Tk scores. Softmax
ignores a constant added to a row, so the linear bias ``-m (i - j)`` can be written as ``m j``. `row` passes it as a
broadcast mask [B, H, 1, Tk] to the fused kernel; `digits` encodes it in a few extra dims of q and k (FlashBias, arXiv
2505.12044), for kernels without masks; `blocked` adds it block by block (`newllm.attention.blocked`).
"""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.attention.blocked import blocked
from newllm.position.bias import Bias, LinearBias, ScoreBias, positional_part

Kernel = Literal["auto", "row", "digits", "blocked", "plain"]
_DIGIT_DIMS = 8  # four are used; fused kernels need a width that is a multiple of 8
_BASE = 256  # digits of this base are exact in bf16
_FEW_QUERIES = 16  # after a cache: up to here all scores are computed at once
_UNPADDED = 1024  # tokens up to which `blocked` beats padding narrow values for the fused kernel (fp32 on CPU)
_SHORT = 128  # tokens up to which storing all scores is faster on CPU than recomputing them
_CACHED_SCORES = 2**20  # scores over a cache computed at a time: 4 MB in fp32, which fit a CPU's cache


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float, kernel: Kernel = "auto") -> Tensor:
    """Causal attention as described in this module. kernel: "auto", or the kernel to use (for comparison)."""
    # Autocast would round the fp32 row mask to bf16, which is off by whole units at positions in the thousands.
    with torch.autocast(q.device.type, enabled=False):
        kernel = _fastest(q, k, v, bias) if kernel == "auto" else kernel
        if kernel == "plain":
            return plain(q, k, v, bias, scale)
        if kernel == "blocked" or q.shape[2] != k.shape[2] or not isinstance(bias, LinearBias | None):
            if torch.compiler.is_compiling():
                from newllm.attention.blocked_operator import blocked_in_graph  # importing it takes a second

                return blocked_in_graph(q, k, v, bias, scale)
            return blocked(q, k, v, bias, scale)
        if bias is None:
            return _fused(q, k, v, scale, mask=None)
        return (digits if kernel == "digits" else row)(q, k, v, bias, scale)


def _fastest(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> Kernel:
    if q.shape[2] != k.shape[2]:
        return "plain" if q.shape[2] <= _FEW_QUERIES else "blocked"
    length, padded = q.shape[2], q.shape[-1] != v.shape[-1]
    half = q.dtype in (torch.bfloat16, torch.float16)
    general = not isinstance(bias, LinearBias | None)
    on_cpu = q.device.type == "cpu"
    if length <= _SHORT and (general or on_cpu):
        return "plain"
    if general or (on_cpu and (half or (padded and length <= _UNPADDED))):
        return "blocked"
    if bias is not None and torch.compiler.is_compiling():
        return "blocked" if on_cpu else "digits"  # the probe below cannot be traced
    return "row" if bias is None or supports_row_bias(q.device.type, q.dtype) else "digits"


def row(q: Tensor, k: Tensor, v: Tensor, bias: LinearBias, scale: float) -> Tensor:
    """Fused attention with the bias as a row mask; O(Tk) memory."""
    return _fused(q, k, v, scale, mask=_row(bias, k.shape[2]).to(torch.promote_types(q.dtype, torch.float32)))


def digits(q: Tensor, k: Tensor, v: Tensor, bias: LinearBias, scale: float) -> Tensor:
    """Fused attention without a mask: ``m j = scale * (q+ . k+)`` for a few dims appended to q and k.

    j is written in base 256 (exact in bf16), and m / scale as the sum of two numbers of q's dtype, so that slopes which
    bf16 cannot represent keep 16 bits.
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
    """Two matrix products and a softmax: the reference, and the fastest kernel for few queries.

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
    """Whether the fused kernel accepts a row mask together with is_causal, which is undocumented: tried on 8 tokens.

    A kernel may raise an error, or ignore one of the two and return other numbers.
    """
    if device_type != "cpu":
        return False  # on CUDA flash attention takes no mask, and the others expand it to T x T
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 8, 8, generator=generator).to(dtype) for _ in range(3))
    bias = LinearBias(torch.tensor([0.5, 0.25]))
    try:
        return torch.allclose(row(q, k, v, bias, 0.35), plain(q, k, v, bias, 0.35), atol=8 * torch.finfo(dtype).eps)
    except RuntimeError:
        return False


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """torch's fused causal attention. It needs q, k and v of one width; padding with zeros changes no result."""
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
    """[B or 1, H or 1, 1, Tk] fp32. Counted back from the last key: the largest weights get the smallest numbers."""
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

    The queries q [B, H, Tq, D] are the last of the `length` tokens in the storages k [B, Hk, S, D] and v [B, Hk, S, Dv]
    (with earlier tokens in the cache, v may also be [B, 1, S, Dv], shared by all heads). A storage has room for more
    tokens than it holds. It is multiplied whole, because matrix libraries copy a view with gaps between its heads; the
    unused keys are masked like the future. A prompt (Tq == length) uses the kernel of training; otherwise all heads of
    a single query are multiplied together, and many queries in blocks, head by head.

    unabsorbed: if a weight was absorbed into q, the queries before that [B, H, Tq, …], for biases that read queries.
    """
    queries, key_heads = q.shape[2], k.shape[1]
    original = q if unabsorbed is None else unabsorbed
    if queries == length and (original is q or not isinstance(bias, ScoreBias)):
        return attend(q, k[:, :, :length], v[:, :, :length], bias, scale, kernel)
    with torch.autocast(q.device.type, enabled=False):
        if queries == 1:
            return _over_storage(q, k, v, _storage_bias(q, k, length - 1, bias), bias, original, length - 1, scale)
        group = q.shape[1] // key_heads  # query heads per key head
        size = max(1, _CACHED_SCORES // (q.shape[0] * group * k.shape[2]))
        blocks = []
        for start in range(0, queries, size):
            block, first = q[:, :, start : start + size], length - queries + start
            added = _storage_bias(block, k, first, bias)
            added = added.expand(*added.shape[:-3], q.shape[1], -1, -1)  # […, H, Tq, S]
            per_head = []
            for head in range(key_heads):
                heads = slice(head * group, (head + 1) * group)
                values = v[:, head : head + 1] if v.shape[1] > 1 else v
                queries_read = original[:, heads, start : start + size]
                keys, added_here = k[:, head : head + 1], added[..., heads, :, :]
                out = _over_storage(block[:, heads], keys, values, added_here, bias, queries_read, first, scale)
                per_head.append(out)
            blocks.append(torch.cat(per_head, 1))
        return torch.cat(blocks, 2)


def _over_storage(
    q: Tensor, k: Tensor, v: Tensor, added: Tensor, bias: Bias | None, original: Tensor, first: int, scale: float
) -> Tensor:
    """Attention of q [B, H, Tq, D], from position `first` on, over k [B, Hk, S, D] and v [B, Hk or 1, S, Dv].

    added [1 or H, Tq, S]: the result of `_storage_bias`. original: the queries for a bias that reads them. Queries that
    share a key head (or the one value head) are stacked, so MQA and absorbed MLA read the cache once for all heads.
    """
    batch, heads, queries, width = q.shape
    groups, keys = k.shape[1], k.shape[2]
    stacked = q.reshape(batch, groups, -1, width)  # [B, Hk, (H / Hk) Tq, D]
    products = _query_products(stacked, k).reshape(batch, heads, queries, keys)
    # One pass over the products: to fp32 (or wider), scaled, the bias added.
    scores = torch.add(added, products, alpha=scale)
    if isinstance(bias, ScoreBias):
        j = torch.arange(keys, device=k.device)
        scores += bias.read(original, products.to(scores.dtype) * scale, j[first : first + queries], j)
    weights = scores.softmax(-1).to(v.dtype).reshape(batch, v.shape[1], -1, keys)
    return (weights @ v).reshape(batch, heads, queries, -1)


def _query_products(q: Tensor, k: Tensor) -> Tensor:
    """``q k^T``. oneDNN's batched bf16 product is several times faster if the longer matrix comes first."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return (k @ q.mT).mT
    return q @ k.mT


def _storage_bias(q: Tensor, k: Tensor, first: int, whole: Bias | None) -> Tensor:
    """Bias and causal mask [1 or H, Tq, S] of queries from position `first` on; fp32 (fp64 if q is)."""
    bias = positional_part(whole)
    last = first + q.shape[2] - 1
    j = torch.arange(k.shape[2], device=k.device)
    i = j[first : last + 1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    if isinstance(bias, LinearBias):
        # Counted back from the last query: the largest weights get the smallest numbers.
        added = (bias.slopes[..., None, None] * (j - last)).to(dtype)
    elif bias is not None:
        added = bias.matrix(i, j).to(dtype)
    else:
        added = torch.zeros(1, 1, 1, dtype=dtype, device=q.device)
    return added.masked_fill(j > i[:, None], float("-inf"))
