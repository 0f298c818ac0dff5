"""Causal attention by plain matrix products on blocks of queries: any bias, and never T x T numbers at once.

For the queries s … e of a block only the keys up to e count. Their scores (b x e, for as many heads as fit a cache)
are made, used and forgotten; the backward pass makes them again from the saved log-sum-exp. That is FlashAttention's
plan (Dao et al. 2022, arXiv 2205.14135) with blocks large enough for the library's matrix products, which on CPUs
are several times faster than torch's fused kernel in bf16. Since a block's scores are ordinary numbers, any bias can be
added to them, even one that reads them first (a block holds whole rows of them), its gradient can be read off them,
and queries, keys and values may differ in width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from newllm.position.bias import Bias, LinearBias, MatrixBias, ScoreBias, learned_tensors, positional_part

_LOG2_E = 1 / math.log(2)  # scores are kept in base 2: exp2 takes a fifth of exp's time on CPUs
_QUERIES = 256  # of a block, at most
_SCORES = {"cpu": 1 << 21}  # numbers of a tile: 8 MB in fp32, which several cores' cache holds
_SCORES_ELSEWHERE = 1 << 26
_READ = 8  # times as many numbers live while a bias reads the scores


def blocked(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float) -> Tensor:
    """``softmax(q k^T * scale + bias, causal) v``; shapes as in `newllm.attention.kernels`. Differentiable once.

    Products are in the dtype of q, k and v, scores and sums in fp32 (fp64 for fp64). Memory: O(Tk) beside the output.
    """
    out: Tensor = _Blocked.apply(q, k, v, bias, scale, *learned_tensors(bias))
    return out


@dataclass(frozen=True)
class _Tile:
    """Some heads of some rows of the batch, the queries first … last, and all the keys before `keys`."""

    rows: slice
    heads: slice  # of the keys; each serves H / Hk query heads
    first: int
    last: int
    keys: int


@dataclass(frozen=True)
class _Read:
    """Scores of a tile in base e, and what a bias that reads them adds: [rows, key heads, groups, queries, keys]."""

    queries: Tensor  # [rows, key heads, groups, queries, D]
    scores: Tensor
    added: Tensor


class _Scores:
    """Scores of any tile, in base 2."""

    def __init__(self, q: Tensor, k: Tensor, bias: Bias | None, scale: float) -> None:
        self.bias, self.scale = positional_part(bias), scale
        self.reads = bias if isinstance(bias, ScoreBias) else None
        (self.batch, heads, self.queries, _), self.key_heads, self.keys = q.shape, k.shape[1], k.shape[2]
        self.groups = heads // self.key_heads
        self.device, self.dtype = q.device, torch.promote_types(q.dtype, torch.float32)
        room = _SCORES.get(q.device.type, _SCORES_ELSEWHERE) // (_READ if self.reads else 1)
        together = 1  # key heads that a tile has at least
        if isinstance(self.bias, MatrixBias) or (self.reads and self.reads.whole_batch):
            together = self.batch * self.key_heads  # all; so that a block of the bias is made once
        self.block = min(_QUERIES, self.queries, max(16, room // (together * self.groups * self.keys)))
        self.at_once = max(together, room // (self.groups * self.block * self.keys))
        self.future = torch.full((self.block, self.block), -math.inf, device=q.device, dtype=self.dtype).triu_(1)
        self.row: Tensor | None = None
        if isinstance(self.bias, LinearBias):
            # Counted back from the last key, so that numbers are small where the weight is.
            distance = torch.arange(1 - self.keys, 1, device=q.device, dtype=self.dtype)
            self.row = self._of_heads(self.bias.slopes.to(self.dtype)[..., None, None] * _LOG2_E) * distance

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """Rows of the batch and key heads that are worked on together."""
        rows, heads = max(1, self.at_once // self.key_heads), min(self.at_once, self.key_heads)
        for row in range(0, self.batch, rows):
            for head in range(0, self.key_heads, heads):
                yield slice(row, row + rows), slice(head, head + heads)

    def tiles(self, rows: slice, heads: slice) -> Iterator[_Tile]:
        before = self.keys - self.queries  # keys of earlier tokens, as a cache holds them
        for first in range(0, self.queries, self.block):
            last = min(first + self.block, self.queries)
            yield _Tile(rows, heads, first, last, before + last)

    def stack(self, x: Tensor, tile: _Tile) -> Tensor:
        """The tile's part of x [B, H, Tq, D] as [rows, key heads, groups * queries, D]: groups share their keys."""
        part = x.unflatten(1, (self.key_heads, self.groups))[tile.rows, tile.heads, :, tile.first : tile.last]
        return part.flatten(2, 3).contiguous()

    def put(self, x: Tensor, tile: _Tile, part: Tensor) -> None:
        """The way back: write the tile's part into x [B, H, Tq, D]."""
        target = x.unflatten(1, (self.key_heads, self.groups))[tile.rows, tile.heads, :, tile.first : tile.last]
        target.copy_(part.unflatten(2, (self.groups, -1)))

    def of(self, q: Tensor, k: Tensor, tile: _Tile, matrix: Tensor | None = None, read: _Read | None = None) -> Tensor:
        """[rows, key heads, groups * queries, keys] in base 2, of the tile's stacked q and its keys k.

        matrix, read: what `matrix_bias` and `read` give for this tile.
        """
        if read is None:
            numbers, factor = self._products(q, k), self.scale * _LOG2_E
        else:
            numbers, factor = (read.scores + read.added).detach(), _LOG2_E
        added = matrix
        if self.row is not None:
            added = _select(self.row, tile)[..., self.keys - tile.keys :]
        if added is None:
            numbers.mul_(factor)
        else:
            torch.add(added, numbers, alpha=factor, out=numbers)
        size = tile.last - tile.first
        numbers[..., tile.keys - size :] += self.future[:size, :size]
        return numbers.flatten(2, 3)

    def matrix_bias(self, tile: _Tile) -> Tensor | None:
        """A general bias for this tile in base 2: [rows or 1, key heads or 1, groups or 1, queries, keys]."""
        if self.bias is None or isinstance(self.bias, LinearBias):
            return None
        whole = self.bias.matrix(*self._positions(tile)).to(self.dtype)
        return _select(self._of_heads(whole), tile) * _LOG2_E

    def read(self, q: Tensor, k: Tensor, tile: _Tile) -> _Read | None:
        """What a bias makes of the scores of this tile's stacked q and keys k; differentiable where gradients are on.

        The bias sees [rows, heads, queries, …], with the heads in their order.
        """
        if self.reads is None:
            return None
        queries = q.unflatten(2, (self.groups, -1)).detach().requires_grad_(torch.is_grad_enabled())
        scores = self._products(q, k).mul_(self.scale).detach().requires_grad_(torch.is_grad_enabled())
        added = self.reads.read(queries.flatten(1, 2), scores.flatten(1, 2), *self._positions(tile))
        return _Read(queries, scores, added.unflatten(1, (-1, self.groups)))

    def by_head(self, x: Tensor) -> Tensor:
        """[rows, key heads, groups * queries, …] -> [rows, key heads, groups, queries, …], in the scores' dtype."""
        return x.to(self.dtype).unflatten(2, (self.groups, -1))

    def _products(self, q: Tensor, k: Tensor) -> Tensor:
        """[rows, key heads, groups, queries, keys], not yet scaled."""
        return self.by_head(_product(q, k.transpose(-1, -2)))

    def _positions(self, tile: _Tile) -> tuple[Tensor, Tensor]:
        """Of the tile's queries and of its keys."""
        j = torch.arange(tile.keys, device=self.device)
        return j[tile.keys - (tile.last - tile.first) :], j

    def _of_heads(self, x: Tensor) -> Tensor:
        """[H or 1, …] or [B, H or 1, …] -> [B or 1, Hk or 1, groups or 1, …] of a bias, whose last two dims follow."""
        x = x if x.dim() == 4 else x[None]
        return x[:, :, None] if x.shape[1] == 1 else x.unflatten(1, (self.key_heads, self.groups))


def _select(x: Tensor, tile: _Tile) -> Tensor:
    """The tile's rows and heads of x [B or 1, Hk or 1, groups or 1, …]."""
    x = x if x.shape[0] == 1 else x[tile.rows]
    return x if x.shape[1] == 1 else x[:, tile.heads]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b on the last two dims; batched products of a single matrix would copy one that is transposed."""
    return (a[0, 0] @ b[0, 0])[None, None] if a.shape[:2].numel() == 1 else a @ b


def forward(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float) -> tuple[Tensor, Tensor]:
    """The output, and the log-sum-exp of each query's scores in base 2, [B, H, Tq, 1]."""
    scores = _Scores(q, k, bias, scale)
    out = torch.empty(*q.shape[:3], v.shape[-1], dtype=v.dtype, device=v.device)
    log_sums = torch.empty(*q.shape[:3], 1, dtype=scores.dtype, device=q.device)
    for rows, heads in scores.parts():
        keys, values = k[rows, heads].contiguous(), v[rows, heads].contiguous()
        for tile in scores.tiles(rows, heads):
            queries, there = scores.stack(q, tile), keys[:, :, : tile.keys]
            numbers = scores.of(queries, there, tile, scores.matrix_bias(tile), scores.read(queries, there, tile))
            top = numbers.amax(-1, keepdim=True)
            total = numbers.sub_(top).exp2_().sum(-1, keepdim=True)
            scores.put(out, tile, _product(numbers.to(v.dtype), values[:, :, : tile.keys]) / total)
            scores.put(log_sums, tile, total.log2_().add_(top))
    return out, log_sums


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_sums: Tensor,
    d_out: Tensor,
    bias: Bias | None,
    scale: float,
    tensors: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of q, k, v and of the bias' tensors."""
    scores = _Scores(q, k, bias, scale)
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    d_tensors = [torch.zeros_like(tensor) for tensor in tensors]
    for rows, heads in scores.parts():
        keys, values = k[rows, heads].contiguous(), v[rows, heads].contiguous()
        sum_k, sum_v = (torch.zeros(x.shape, dtype=scores.dtype, device=x.device) for x in (keys, values))
        for tile in scores.tiles(rows, heads):
            queries, wanted = scores.stack(q, tile), scores.stack(d_out, tile)
            there = slice(tile.keys)
            with torch.enable_grad():
                matrix, read = scores.matrix_bias(tile), scores.read(queries, keys[:, :, there], tile)
            fixed = None if matrix is None else matrix.detach()
            numbers = scores.of(queries, keys[:, :, there], tile, fixed, read)
            p = numbers.sub_(scores.stack(log_sums, tile)).exp2_().to(v.dtype)
            sum_v[:, :, there] += _product(p.transpose(-1, -2), wanted)
            d_p = _product(wanted, values[:, :, there].transpose(-1, -2))
            d_scores = _softmax_gradient(p, d_p)
            if matrix is not None and matrix.requires_grad:
                per_bias = scores.by_head(d_scores).sum_to_size(matrix.shape)
                # d / d (bias in base 2) = d / d (bias) * ln 2
                _add_gradients(matrix, per_bias / _LOG2_E, tensors, d_tensors)
            of_queries = None  # by what the bias makes of them
            if read is not None:
                of_queries, of_scores = _through(read, scores.by_head(d_scores), tensors, d_tensors)
                d_scores = of_scores.flatten(2, 3).to(d_scores.dtype)
            d_queries = _product(d_scores, keys[:, :, there]) * scale
            if of_queries is not None:
                d_queries += of_queries.flatten(2, 3)
            scores.put(d_q, tile, d_queries)
            sum_k[:, :, there] += _product(d_scores.transpose(-1, -2), queries)
        d_k[rows, heads], d_v[rows, heads] = sum_k * scale, sum_v
    return d_q, d_k, d_v, d_tensors


def _softmax_gradient(p: Tensor, d_p: Tensor) -> Tensor:
    """``p (d_p - sum p d_p)`` along the last dim: in one pass where this torch has its private function for it."""
    fused = getattr(torch, "_softmax_backward_data", None)
    if fused is not None:
        gradient: Tensor = fused(d_p, p, -1, p.dtype)
        return gradient
    exact, d_exact = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (p, d_p))
    return (exact * (d_exact - (exact * d_exact).sum(-1, keepdim=True))).to(p.dtype)


def _through(
    read: _Read, d_added: Tensor, tensors: Sequence[Tensor], d_tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients of a tile's queries, by what the bias makes of them, and of its scores, by that and by themselves."""
    of_queries, of_scores = torch.zeros_like(read.queries), d_added.clone()
    inputs, totals = (read.queries, read.scores, *tensors), (of_queries, of_scores, *d_tensors)
    _add_gradients(read.added, d_added, inputs, totals)
    return of_queries, of_scores


def _add_gradients(of: Tensor, d_of: Tensor, inputs: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
    """Add to the totals what the inputs, from which `of` was computed, get of its gradient."""
    if not inputs:
        raise RuntimeError("this bias learns: its `tensors` must name what it is computed from")
    pairs = [(tensor, total) for tensor, total in zip(inputs, totals, strict=True) if tensor.requires_grad]
    found = torch.autograd.grad(of, [tensor for tensor, _ in pairs], d_of, allow_unused=True)
    for (_, total), gradient in zip(pairs, found, strict=True):
        if gradient is not None:
            total += gradient


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float, *tensors: Tensor) -> Tensor:
        out, log_sums = forward(q, k, v, bias, scale)
        ctx.save_for_backward(q, k, v, log_sums, *tensors)
        ctx.bias, ctx.scale = bias, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        q, k, v, log_sums, *tensors = ctx.saved_tensors
        *gradients, of_tensors = backward(q, k, v, log_sums, grad_outputs[0], ctx.bias, ctx.scale, tensors)
        return *gradients, None, None, *of_tensors
