"""Causal attention as matrix products over blocks of queries: takes any bias and never stores T x T scores.

A block of queries s … e attends to the keys up to e. Its scores (b x e, for as many heads as fit a CPU cache) are
computed, used and dropped; the backward pass recomputes them from the saved log-sum-exp. This is FlashAttention's
scheme (Dao et al. 2022, arXiv 2205.14135) with blocks large enough for the library's matrix products, which on CPUs
are several times faster than torch's fused kernel in bf16. A block holds whole rows of scores as an ordinary tensor, so
a bias may depend on the scores, its gradient follows from theirs, and queries, keys and values may differ in width.
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
_MAX_BLOCK = 256  # queries in a block
_MAX_TILE = {"cpu": 1 << 21}  # scores in a tile: 8 MB in fp32, which fits the shared cache of several cores
_MAX_TILE_ELSEWHERE = 1 << 26
_SCORE_BIAS_MEMORY = 8  # a score bias needs about this many times the memory of the scores


def blocked(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float) -> Tensor:
    """``softmax(q k^T * scale + bias, causal) v``; shapes as in `newllm.attention.kernels`. Differentiable once.

    Products are in the dtype of q, k and v, scores and sums in fp32 (fp64 for fp64). Memory: the output and O(Tk).
    """
    out: Tensor = _Blocked.apply(q, k, v, bias, scale, *learned_tensors(bias))
    return out


@dataclass(frozen=True)
class _Tile:
    """A block of queries of some batch rows and heads, and the keys that it attends to."""

    rows: slice
    heads: slice  # key heads; each serves H / Hk query heads
    first: int  # first query
    last: int  # one past the last query
    keys: int  # number of keys


@dataclass(frozen=True)
class _ScoreBiasOfTile:
    """Inputs and output of a ScoreBias for one tile, kept for its gradient."""

    queries: Tensor  # [rows, key heads, groups, queries, D]
    scores: Tensor  # [rows, key heads, groups, queries, keys], in base e
    output: Tensor  # same shape


class _Tiling:
    """Cuts attention into tiles and computes their scores, which are kept in base 2."""

    def __init__(self, q: Tensor, k: Tensor, bias: Bias | None, scale: float) -> None:
        self.bias, self.scale = positional_part(bias), scale
        self.score_bias = bias if isinstance(bias, ScoreBias) else None
        (self.batch, heads, self.queries, _), self.key_heads, self.keys = q.shape, k.shape[1], k.shape[2]
        self.groups = heads // self.key_heads
        self.device, self.dtype = q.device, torch.promote_types(q.dtype, torch.float32)
        limit = _MAX_TILE.get(q.device.type, _MAX_TILE_ELSEWHERE) // (_SCORE_BIAS_MEMORY if self.score_bias else 1)
        least_heads = 1  # key heads in a tile, counted over all batch rows
        if isinstance(self.bias, MatrixBias) or (self.score_bias and self.score_bias.whole_batch):
            least_heads = self.batch * self.key_heads  # all, so that each block of the bias is computed once
        self.block = min(_MAX_BLOCK, self.queries, max(16, limit // (least_heads * self.groups * self.keys)))
        self.heads_per_tile = max(least_heads, limit // (self.groups * self.block * self.keys))
        self.future = torch.full((self.block, self.block), -math.inf, device=q.device, dtype=self.dtype).triu_(1)
        self.row: Tensor | None = None
        if isinstance(self.bias, LinearBias):
            # Counted back from the last key: the largest weights get the smallest numbers.
            distance = torch.arange(1 - self.keys, 1, device=q.device, dtype=self.dtype)
            self.row = self._of_heads(self.bias.slopes.to(self.dtype)[..., None, None] * _LOG2_E) * distance

    def row_and_head_slices(self) -> Iterator[tuple[slice, slice]]:
        """Slices of the batch rows and key heads that share a tile."""
        rows, heads = max(1, self.heads_per_tile // self.key_heads), min(self.heads_per_tile, self.key_heads)
        for row in range(0, self.batch, rows):
            for head in range(0, self.key_heads, heads):
                yield slice(row, row + rows), slice(head, head + heads)

    def tiles(self, rows: slice, heads: slice) -> Iterator[_Tile]:
        past = self.keys - self.queries  # keys of earlier tokens in a cache
        for first in range(0, self.queries, self.block):
            last = min(first + self.block, self.queries)
            yield _Tile(rows, heads, first, last, past + last)

    def stack(self, x: Tensor, tile: _Tile) -> Tensor:
        """The tile's part of x [B, H, Tq, D] as [rows, key heads, groups * queries, D]: groups share a key head."""
        part = x.unflatten(1, (self.key_heads, self.groups))[tile.rows, tile.heads, :, tile.first : tile.last]
        return part.flatten(2, 3).contiguous()

    def unstack_into(self, x: Tensor, tile: _Tile, part: Tensor) -> None:
        """The inverse of `stack`: write the tile's part into x [B, H, Tq, D]."""
        target = x.unflatten(1, (self.key_heads, self.groups))[tile.rows, tile.heads, :, tile.first : tile.last]
        target.copy_(part.unflatten(2, (self.groups, -1)))

    def scores(
        self, q: Tensor, k: Tensor, tile: _Tile, matrix: Tensor | None = None, read: _ScoreBiasOfTile | None = None
    ) -> Tensor:
        """Scores [rows, key heads, groups * queries, keys] in base 2 of the tile's stacked q and its keys k.

        matrix, read: the results of `matrix_bias` and `read` for this tile.
        """
        if read is None:
            scores, factor = self._products(q, k), self.scale * _LOG2_E
        else:
            scores, factor = (read.scores + read.output).detach(), _LOG2_E
        bias = matrix
        if self.row is not None:
            bias = _select(self.row, tile)[..., self.keys - tile.keys :]
        if bias is None:
            scores.mul_(factor)
        else:
            torch.add(bias, scores, alpha=factor, out=scores)
        size = tile.last - tile.first
        scores[..., tile.keys - size :] += self.future[:size, :size]
        return scores.flatten(2, 3)

    def matrix_bias(self, tile: _Tile) -> Tensor | None:
        """A MatrixBias of this tile in base 2: [rows or 1, key heads or 1, groups or 1, queries, keys]."""
        if self.bias is None or isinstance(self.bias, LinearBias):
            return None
        whole = self.bias.matrix(*self._positions(tile)).to(self.dtype)
        return _select(self._of_heads(whole), tile) * _LOG2_E

    def read(self, q: Tensor, k: Tensor, tile: _Tile) -> _ScoreBiasOfTile | None:
        """Call a ScoreBias on this tile's stacked q and keys k; with gradients if they are enabled.

        The bias sees [rows, heads, queries, …], with the heads in their usual order.
        """
        if self.score_bias is None:
            return None
        queries = q.unflatten(2, (self.groups, -1)).detach().requires_grad_(torch.is_grad_enabled())
        scores = self._products(q, k).mul_(self.scale).detach().requires_grad_(torch.is_grad_enabled())
        output = self.score_bias.read(queries.flatten(1, 2), scores.flatten(1, 2), *self._positions(tile))
        return _ScoreBiasOfTile(queries, scores, output.unflatten(1, (-1, self.groups)))

    def by_head(self, x: Tensor) -> Tensor:
        """[rows, key heads, groups * queries, …] -> [rows, key heads, groups, queries, …], in the scores' dtype."""
        return x.to(self.dtype).unflatten(2, (self.groups, -1))

    def _products(self, q: Tensor, k: Tensor) -> Tensor:
        """Unscaled products [rows, key heads, groups, queries, keys]."""
        return self.by_head(_product(q, k.transpose(-1, -2)))

    def _positions(self, tile: _Tile) -> tuple[Tensor, Tensor]:
        """Positions of the tile's queries and of its keys."""
        j = torch.arange(tile.keys, device=self.device)
        return j[tile.keys - (tile.last - tile.first) :], j

    def _of_heads(self, x: Tensor) -> Tensor:
        """A bias [H or 1, …, …] or [B, H or 1, …, …] -> [B or 1, Hk or 1, groups or 1, …, …]."""
        x = x if x.dim() == 4 else x[None]
        return x[:, :, None] if x.shape[1] == 1 else x.unflatten(1, (self.key_heads, self.groups))


def _select(x: Tensor, tile: _Tile) -> Tensor:
    """The tile's rows and heads of x [B or 1, Hk or 1, groups or 1, …]."""
    x = x if x.shape[0] == 1 else x[tile.rows]
    return x if x.shape[1] == 1 else x[:, tile.heads]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b on the last two dims. A batched product of single matrices would copy a transposed one; this does not."""
    return (a[0, 0] @ b[0, 0])[None, None] if a.shape[:2].numel() == 1 else a @ b


def forward(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, scale: float) -> tuple[Tensor, Tensor]:
    """The output, and the log-sum-exp of each query's scores in base 2, [B, H, Tq, 1]."""
    tiling = _Tiling(q, k, bias, scale)
    out = torch.empty(*q.shape[:3], v.shape[-1], dtype=v.dtype, device=v.device)
    log_sums = torch.empty(*q.shape[:3], 1, dtype=tiling.dtype, device=q.device)
    for rows, heads in tiling.row_and_head_slices():
        k_part, v_part = k[rows, heads].contiguous(), v[rows, heads].contiguous()
        for tile in tiling.tiles(rows, heads):
            queries, keys, values = tiling.stack(q, tile), k_part[:, :, : tile.keys], v_part[:, :, : tile.keys]
            scores = tiling.scores(queries, keys, tile, tiling.matrix_bias(tile), tiling.read(queries, keys, tile))
            top = scores.amax(-1, keepdim=True)
            total = scores.sub_(top).exp2_().sum(-1, keepdim=True)
            tiling.unstack_into(out, tile, _product(scores.to(v.dtype), values) / total)
            tiling.unstack_into(log_sums, tile, total.log2_().add_(top))
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
    """Gradients of q, k, v and of the learned tensors of the bias."""
    tiling = _Tiling(q, k, bias, scale)
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    d_tensors = [torch.zeros_like(tensor) for tensor in tensors]
    for rows, heads in tiling.row_and_head_slices():
        k_part, v_part = k[rows, heads].contiguous(), v[rows, heads].contiguous()
        sum_k, sum_v = (torch.zeros(x.shape, dtype=tiling.dtype, device=x.device) for x in (k_part, v_part))
        for tile in tiling.tiles(rows, heads):
            queries, d_tile = tiling.stack(q, tile), tiling.stack(d_out, tile)
            keys, values = k_part[:, :, : tile.keys], v_part[:, :, : tile.keys]
            with torch.enable_grad():
                matrix, read = tiling.matrix_bias(tile), tiling.read(queries, keys, tile)
            scores = tiling.scores(queries, keys, tile, None if matrix is None else matrix.detach(), read)
            p = scores.sub_(tiling.stack(log_sums, tile)).exp2_().to(v.dtype)
            sum_v[:, :, : tile.keys] += _product(p.transpose(-1, -2), d_tile)
            d_p = _product(d_tile, values.transpose(-1, -2))
            d_scores = _softmax_gradient(p, d_p)
            if matrix is not None and matrix.requires_grad:
                d_matrix = tiling.by_head(d_scores).sum_to_size(matrix.shape)
                # d / d (bias in base 2) = d / d (bias) * ln 2
                _add_gradients(matrix, d_matrix / _LOG2_E, tensors, d_tensors)
            d_read_queries = None
            if read is not None:  # d_scores is the gradient of scores + bias(queries, scores)
                d_read_queries, d_both = torch.zeros_like(read.queries), tiling.by_head(d_scores).clone()
                inputs, totals = (read.queries, read.scores, *tensors), (d_read_queries, d_both, *d_tensors)
                _add_gradients(read.output, tiling.by_head(d_scores), inputs, totals)
                d_scores = d_both.flatten(2, 3).to(d_scores.dtype)
            d_queries = _product(d_scores, keys) * scale
            if d_read_queries is not None:
                d_queries += d_read_queries.flatten(2, 3)
            tiling.unstack_into(d_q, tile, d_queries)
            sum_k[:, :, : tile.keys] += _product(d_scores.transpose(-1, -2), queries)
        d_k[rows, heads], d_v[rows, heads] = sum_k * scale, sum_v
    return d_q, d_k, d_v, d_tensors


def _softmax_gradient(p: Tensor, d_p: Tensor) -> Tensor:
    """``p (d_p - sum p d_p)`` along the last dim; in one pass if torch still has its private function for that."""
    fused = getattr(torch, "_softmax_backward_data", None)
    if fused is not None:
        gradient: Tensor = fused(d_p, p, -1, p.dtype)
        return gradient
    exact, d_exact = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (p, d_p))
    return (exact * (d_exact - (exact * d_exact).sum(-1, keepdim=True))).to(p.dtype)


def _add_gradients(output: Tensor, d_output: Tensor, inputs: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
    """Backpropagate d_output from `output` to `inputs`, and add each input's gradient to its total."""
    if not inputs:
        raise RuntimeError("this bias is learned: its `tensors` must list the parameters that it is computed from")
    pairs = [(tensor, total) for tensor, total in zip(inputs, totals, strict=True) if tensor.requires_grad]
    gradients = torch.autograd.grad(output, [tensor for tensor, _ in pairs], d_output, allow_unused=True)
    for (_, total), gradient in zip(pairs, gradients, strict=True):
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
        *gradients, d_tensors = backward(q, k, v, log_sums, grad_outputs[0], ctx.bias, ctx.scale, tensors)
        return *gradients, None, None, *d_tensors
