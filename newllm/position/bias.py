"""Biases that a position encoding adds to the attention scores. The kind of bias determines the kernel."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearBias:
    """``-slope * (i - j)`` for query position i and key position j; needs no T x T matrix.

    Softmax ignores a constant added to a row, so ``+slope * j`` is the same bias: a row instead of a matrix.
    """

    slopes: Tensor  # [1] (shared) or [heads]; [B, 1 or heads] if batch rows differ; fp32, constant

    def matrix(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """[1 or heads, Tq, Tk], or [B, 1 or heads, Tq, Tk]; fp32."""
        distance = query_positions[:, None] - key_positions[None, :]
        return -self.slopes[..., None, None] * distance.float()


@dataclass(frozen=True)
class MatrixBias:
    """A general bias: ``matrix(query_positions [Tq], key_positions [Tk])`` gives [1 or heads, Tq, Tk].

    The result may have a leading batch dimension. Positions are consecutive. The function is called for one block of
    queries at a time, and again in the backward pass. Values for keys after the query are masked, but they and their
    gradients must be finite: use `past_distances` or `by_distance`.
    tensors: the learned tensors that the bias is computed from; only these get gradients.
    """

    matrix: Callable[[Tensor, Tensor], Tensor]
    tensors: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class ScoreBias:
    """A bias that depends on the contents of queries and keys: ``read(q, scores, query_positions, key_positions)``.

    q [..., Tq, D] are the queries (in latent attention the unrotated part comes first and the rotary part may be
    missing). scores [..., Tq, Tk] are their scaled products with the keys, in fp32 (fp64 if q is); the result has the
    same shape and dtype. Keys start at position 0. Scores of keys after a query are meaningless and must not affect
    the others. The leading dims are any subset of batch rows and heads; the result must not depend on the subset.

    tensors: as in `MatrixBias`, including those of `positional`. positional: a bias of another kind, added to this one.
    whole_batch: `read` treats the rows of the batch differently, so it must be called with all of them.
    """

    read: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    tensors: tuple[Tensor, ...] = ()
    positional: LinearBias | MatrixBias | None = None
    whole_batch: bool = False


PositionBias = LinearBias | MatrixBias  # depends on positions only
Bias = PositionBias | ScoreBias


def past_distances(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Distances ``i - j`` [Tq, Tk] from keys to their queries; 0 for keys after the query, which are masked."""
    return (query_positions[:, None] - key_positions[None, :]).clamp(min=0)


def by_distance(values: Callable[[Tensor], Tensor], query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """A bias [heads, Tq, Tk] that depends only on the distance: values(distances [N] >= 0) returns [heads, N].

    Only Tq + Tk values are computed, as one long row. Each row of the matrix is a slice of it that starts one place
    later than the row below; so the matrix is a view of copies of the long row, with a stride that is one shorter.
    """
    queries, keys = len(query_positions), len(key_positions)
    farthest = query_positions[-1] - key_positions[0]
    row = values((farthest - torch.arange(queries + keys, device=farthest.device)).clamp(min=0))
    copies = row[:, None].expand(-1, queries, -1).flatten(1)  # [heads, Tq * (Tq + Tk)]
    width = queries + keys - 1
    return copies[:, queries - 1 : queries - 1 + queries * width].unflatten(1, (queries, width))[..., :keys]


def positional_part(bias: Bias | None) -> PositionBias | None:
    """The part of a bias that depends on positions only."""
    return bias.positional if isinstance(bias, ScoreBias) else bias


def learned_tensors(bias: Bias | None) -> tuple[Tensor, ...]:
    """The learned tensors of a bias."""
    return () if bias is None or isinstance(bias, LinearBias) else bias.tensors


def add(a: Bias | None, b: Bias | None) -> Bias | None:
    """The sum of two biases, as the cheapest kind that can express it."""
    if a is None or b is None:
        return a or b
    if isinstance(a, LinearBias) and isinstance(b, LinearBias):
        return LinearBias(a.slopes + b.slopes)
    tensors = tuple(dict.fromkeys(learned_tensors(a) + learned_tensors(b)))  # duplicates would double the gradient
    if isinstance(a, ScoreBias) or isinstance(b, ScoreBias):
        positional = add(positional_part(a), positional_part(b))
        assert not isinstance(positional, ScoreBias)
        if not (isinstance(a, ScoreBias) and isinstance(b, ScoreBias)):
            score_bias = a if isinstance(a, ScoreBias) else b
            assert isinstance(score_bias, ScoreBias)
            return replace(score_bias, tensors=tensors, positional=positional)
        read_a, read_b = a.read, b.read
        whole_batch = a.whole_batch or b.whole_batch
        return ScoreBias(lambda *args: read_a(*args) + read_b(*args), tensors, positional, whole_batch)
    matrix_a, matrix_b = a.matrix, b.matrix
    return MatrixBias(lambda query, key: matrix_a(query, key) + matrix_b(query, key), tensors)
