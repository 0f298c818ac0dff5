"""What a position encoding may add to the attention scores. The kind decides which kernel serves it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearBias:
    """``-slope * (i - j)`` for query position i and key position j; the kind that needs no T x T matrix.

    Softmax ignores what is constant along a row, so ``+slope * j`` is the same bias: a row, not a matrix.
    """

    slopes: Tensor  # [1], one for all heads, or [heads]; [B, 1 or heads] where batch rows differ; fp32, constant

    def matrix(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """[1 or heads, Tq, Tk], or with B in front; fp32."""
        distance = query_positions[:, None] - key_positions[None, :]
        return -self.slopes[..., None, None] * distance.float()


@dataclass(frozen=True)
class MatrixBias:
    """A general bias: ``matrix(query_positions [Tq], key_positions [Tk])`` gives [1 or heads, Tq, Tk].

    The result may have the batch in front. Positions are consecutive. The function is called for one block of queries
    at a time, and again in the backward pass. Values for keys after the query are masked, but they and their gradients
    must be finite: `past` and `by_distance` see to that.
    tensors: the learned tensors that it is computed from; only these get gradients.
    """

    matrix: Callable[[Tensor, Tensor], Tensor]
    tensors: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class ScoreBias:
    """A bias that depends on what queries and keys hold: ``read(q, scores, query_positions, key_positions)``.

    q [..., Tq, D] are the queries (latent attention's begin with their unrotated part; the rotary one may be missing),
    scores [..., Tq, Tk] their products with the keys, scaled, in fp32 (fp64 as q); so is the result, of the scores'
    shape. Tk counts the keys from the first one on; scores of keys after a query are meaningless and must not affect
    the others. The leading dims are some or all rows of the batch and heads, so the result must not depend on which.

    tensors: as in `MatrixBias`, those of `beside` included. beside: a bias of another kind that is added.
    whole_batch: `read` needs all rows of the batch at once, since it treats them differently.
    """

    read: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    tensors: tuple[Tensor, ...] = ()
    beside: LinearBias | MatrixBias | None = None
    whole_batch: bool = False


PositionBias = LinearBias | MatrixBias  # needs positions alone
Bias = PositionBias | ScoreBias


def past(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Distances ``i - j`` [Tq, Tk] from keys to their queries; 0 for keys after the query, which are masked."""
    return (query_positions[:, None] - key_positions[None, :]).clamp(min=0)


def by_distance(values: Callable[[Tensor], Tensor], query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """[heads, Tq, Tk] of a bias that depends on the distance alone: values(distances [N] >= 0) gives [heads, N].

    Only Tq + Tk values are computed. Every row of the matrix is a slice of one longer row and starts one place earlier
    than the row above; so the matrix is read out of copies of that row, with a stride that is one number shorter.
    """
    queries, keys = len(query_positions), len(key_positions)
    farthest = query_positions[-1] - key_positions[0]
    row = values((farthest - torch.arange(queries + keys, device=farthest.device)).clamp(min=0))
    copies = row[:, None].expand(-1, queries, -1).flatten(1)  # [heads, Tq * (Tq + Tk)]
    width = queries + keys - 1
    return copies[:, queries - 1 : queries - 1 + queries * width].unflatten(1, (queries, width))[..., :keys]


def by_positions(bias: Bias | None) -> PositionBias | None:
    """The part of a bias that depends on positions alone."""
    return bias.beside if isinstance(bias, ScoreBias) else bias


def learned(bias: Bias | None) -> tuple[Tensor, ...]:
    """The learned tensors of a bias."""
    return () if bias is None or isinstance(bias, LinearBias) else bias.tensors


def add(a: Bias | None, b: Bias | None) -> Bias | None:
    """The sum of two biases, as the cheapest kind that can express it."""
    if a is None or b is None:
        return a or b
    if isinstance(a, LinearBias) and isinstance(b, LinearBias):
        return LinearBias(a.slopes + b.slopes)
    tensors = tuple(dict.fromkeys(learned(a) + learned(b)))  # each once, or its gradient would count twice
    if isinstance(a, ScoreBias) or isinstance(b, ScoreBias):
        beside = add(by_positions(a), by_positions(b))
        assert not isinstance(beside, ScoreBias)
        if not (isinstance(a, ScoreBias) and isinstance(b, ScoreBias)):
            reader = a if isinstance(a, ScoreBias) else b
            assert isinstance(reader, ScoreBias)
            return replace(reader, tensors=tensors, beside=beside)
        one, other = a.read, b.read
        whole = a.whole_batch or b.whole_batch
        return ScoreBias(lambda *given: one(*given) + other(*given), tensors, beside, whole)
    first, second = a.matrix, b.matrix
    return MatrixBias(lambda query, key: first(query, key) + second(query, key), tensors)
