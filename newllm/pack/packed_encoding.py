"""The position encodings of packed runs, as one encoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from newllm.position.bias import Bias, LinearBias, MatrixBias, PositionBias, ScoreBias, learned_tensors, positional_part
from newllm.position.encoding import PositionEncoding

_OF_TORCH = vars(nn.Module()).keys()


@dataclass
class Rows:
    """The number of rows that each run has in the current packed batch."""

    each: int = 1


class PackedEncoding(PositionEncoding):
    """Each run's encoding acts on the rows of its run; neighbours with equal encodings share one call.

    This works for every encoding, whatever it does.
    """

    def __init__(self, encodings: Sequence[PositionEncoding], rows: Rows) -> None:
        nn.Module.__init__(self)
        first = encodings[0]
        self.layers, self.rotates, self.relative = first.layers, first.rotates, first.relative
        self.limit = min((encoding.limit for encoding in encodings if encoding.limit is not None), default=None)
        self._rows = rows
        self._groups: list[tuple[PositionEncoding, int]] = []  # encoding, number of neighbouring runs that have it
        for encoding in encodings:
            if self._groups and equal(self._groups[-1][0], encoding):
                self._groups[-1] = (self._groups[-1][0], self._groups[-1][1] + 1)
            else:
                self._groups.append((encoding, 1))

    def at_input(self, x: Tensor, positions: Tensor) -> Tensor:
        (x,) = self._by_group(lambda encoding, part: (encoding.at_input(part, positions),), x)
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self._by_group(lambda encoding, *parts: encoding.rotate(*parts, positions), q, k)
        return q, k

    def bias(self) -> Bias | None:
        biases = [encoding.bias() for encoding, _ in self._groups]
        sizes = [runs * self._rows.each for _, runs in self._groups]
        if len(biases) == 1:
            return biases[0]
        positional = _stack_biases([positional_part(bias) for bias in biases], sizes)
        if not any(isinstance(bias, ScoreBias) for bias in biases):
            return positional

        def read(q: Tensor, scores: Tensor, query: Tensor, key: Tensor) -> Tensor:
            parts = zip(biases, q.split(sizes), scores.split(sizes), strict=True)
            return torch.cat([
                bias.read(queries, part, query, key) if isinstance(bias, ScoreBias) else torch.zeros_like(part)
                for bias, queries, part in parts
            ])  # fmt: skip

        tensors = tuple(tensor for bias in biases for tensor in learned_tensors(bias))
        return ScoreBias(read, tensors, positional, whole_batch=True)

    def adapt(self, length: int) -> None:
        for encoding, _ in self._groups:
            encoding.adapt(length)

    def _by_group(self, act: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """`act` on the rows of each group. A tensor that no group changes is not copied."""
        if len(self._groups) == 1:
            return act(self._groups[0][0], *tensors)
        sizes = [runs * self._rows.each for _, runs in self._groups]
        parts = list(zip(*(tensor.split(sizes) for tensor in tensors), strict=True))
        results = [act(encoding, *part) for (encoding, _), part in zip(self._groups, parts, strict=True)]
        return tuple(
            tensor if all(after is before for after, before in zip(new, old, strict=True)) else torch.cat(new)
            for tensor, new, old in zip(tensors, zip(*results, strict=True), zip(*parts, strict=True), strict=True)
        )


def _stack_biases(biases: Sequence[PositionBias | None], sizes: Sequence[int]) -> PositionBias | None:
    """One bias of the whole batch [K * B]; each of the `biases` holds for `sizes` rows, in order."""
    if all(bias is None for bias in biases):
        return None
    slopes = [bias.slopes for bias in biases if isinstance(bias, LinearBias)]
    if len(slopes) == len(biases):
        heads = max(slope.shape[-1] for slope in slopes)
        return LinearBias(torch.cat([slope.expand(rows, heads) for slope, rows in zip(slopes, sizes, strict=True)]))

    def matrix(query: Tensor, key: Tensor) -> Tensor:  # [K * B, 1 or heads, Tq, Tk]
        none = torch.zeros(1, len(query), len(key), device=query.device)
        matrices = [none if bias is None else bias.matrix(query, key) for bias in biases]
        heads = max(one.shape[-3] for one in matrices)
        return torch.cat([one.expand(rows, heads, -1, -1) for one, rows in zip(matrices, sizes, strict=True)])

    return MatrixBias(matrix, tuple(tensor for bias in biases for tensor in learned_tensors(bias)))


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules without parameters compute the same. What cannot be compared counts as different."""
    return not [*one.parameters(), *other.parameters()] and _equal_values(one, other)


def _equal_values(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, nn.Module):
        return _equal_values(_attributes(one), _attributes(other))
    if isinstance(one, Tensor):
        return not one.is_meta and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal_values(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal_values, one, other))
    return isinstance(one, str | int | float | None | frozenset | set) and one == other


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes, buffers and children, without torch's bookkeeping."""
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    return {**own, **dict(module.named_buffers(recurse=False)), **dict(module.named_children())}
