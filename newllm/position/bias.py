"""What a position encoding may add to the attention scores. The kind decides which kernel serves it."""

from collections.abc import Callable
from dataclasses import dataclass

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

    It may have the batch in front. It is asked for one block of queries at a time, again in the backward pass.
    tensors: what it is computed from and learns; they get their gradients, and nothing else does.
    """

    matrix: Callable[[Tensor, Tensor], Tensor]
    tensors: tuple[Tensor, ...] = ()


Bias = LinearBias | MatrixBias


def add(a: Bias | None, b: Bias | None) -> Bias | None:
    """Sum of two biases, of the cheapest kind that holds it."""
    if a is None or b is None:
        return a or b
    if isinstance(a, LinearBias) and isinstance(b, LinearBias):
        return LinearBias(a.slopes + b.slopes)
    first, second = a.matrix, b.matrix
    tensors = tuple(tensor for bias in (a, b) if isinstance(bias, MatrixBias) for tensor in bias.tensors)
    return MatrixBias(lambda query, key: first(query, key) + second(query, key), tensors)
