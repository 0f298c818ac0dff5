"""What a position encoding may add to the attention scores. The kind decides which kernel serves it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LinearBias:
    """``-slope * (i - j)`` for query position i and key position j; the kind that needs no T x T matrix.

    Softmax ignores what is constant along a row, so ``+slope * j`` is the same bias: a row, not a matrix.
    """

    slopes: Tensor  # [1], one for all heads, or [heads]; fp32, constant

    def matrix(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """[1 or heads, Tq, Tk], fp32."""
        distance = query_positions[:, None] - key_positions[None, :]
        return -self.slopes[:, None, None] * distance.float()


@dataclass(frozen=True)
class MatrixBias:
    """A general bias: ``matrix(query_positions [Tq], key_positions [Tk])`` gives [1 or heads, Tq, Tk]."""

    matrix: Callable[[Tensor, Tensor], Tensor]


Bias = LinearBias | MatrixBias


def add(a: Bias | None, b: Bias | None) -> Bias | None:
    """Sum of two biases, of the cheapest kind that holds it."""
    if a is None or b is None:
        return a or b
    if isinstance(a, LinearBias) and isinstance(b, LinearBias):
        return LinearBias(a.slopes + b.slopes)
    first, second = a.matrix, b.matrix
    return MatrixBias(lambda query, key: first(query, key) + second(query, key))
