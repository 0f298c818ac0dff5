"""The position encodings of packed runs, as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from newllm.position.bias import Bias, LinearBias, MatrixBias, PositionBias, ScoreBias, learned_tensors, positional_part
from newllm.position.encoding import PositionEncoding


@dataclass
class Rows:
    """How many rows each run has in the packed batch that is under way."""

    each: int = 1


class PackedEncoding(PositionEncoding):
    """Each run's encoding acts on the rows of its run; neighbours whose encodings are equal share one call.

    Whatever an encoding does, it does here: nothing has to be known of its kind.
    """

    def __init__(self, encodings: Sequence[PositionEncoding], rows: Rows) -> None:
        nn.Module.__init__(self)
        first = encodings[0]
        limits = [encoding.limit for encoding in encodings if encoding.limit is not None]
        self.layers, self.rotates, self.relative = first.layers, first.rotates, first.relative
        self.limit = min(limits, default=None)
        self._rows = rows
        numbered: list[tuple[int, PositionEncoding]] = []
        for encoding in encodings:
            same = bool(numbered) and equal(numbered[-1][1], encoding)
            numbered.append((numbered[-1][0] if same else len(numbered), encoding))
        grouped = ([one for _, one in group] for _, group in groupby(numbered, key=lambda pair: pair[0]))
        self._groups = [(group[0], len(group)) for group in grouped]  # encoding, runs that have it

    def at_input(self, x: Tensor, positions: Tensor) -> Tensor:
        (changed,) = self._apart(lambda encoding, part: (encoding.at_input(part, positions),), x)
        return changed

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self._apart(lambda encoding, *parts: encoding.rotate(*parts, positions), q, k)
        return q, k

    def bias(self) -> Bias | None:
        found = [(encoding.bias(), runs * self._rows.each) for encoding, runs in self._groups]
        if len(found) == 1 or all(bias is None for bias, _ in found):
            return found[0][0]
        return _together(found)

    def adapt(self, length: int) -> None:
        for encoding, _ in self._groups:
            encoding.adapt(length)

    def _apart(self, act: Callable[..., tuple[Tensor, ...]], *whole: Tensor) -> tuple[Tensor, ...]:
        """`act` on each group's rows; what no group changes is not copied."""
        if len(self._groups) == 1:
            return act(self._groups[0][0], *whole)
        sizes = [runs * self._rows.each for _, runs in self._groups]
        parts = list(zip(*(tensor.split(sizes) for tensor in whole), strict=True))
        done = [act(encoding, *part) for (encoding, _), part in zip(self._groups, parts, strict=True)]
        return tuple(
            old if all(new[i] is part[i] for new, part in zip(done, parts, strict=True)) else torch.cat(together)
            for i, (old, together) in enumerate(zip(whole, zip(*done, strict=True), strict=True))
        )


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Do two modules without parameters compute the same? What cannot be compared counts as different."""
    if type(one) is not type(other) or any(True for _ in (*one.parameters(), *other.parameters())):
        return False
    modules = dict(one.named_modules()), dict(other.named_modules())
    if modules[0].keys() != modules[1].keys():
        return False
    return all(_equal_values(_own(module), _own(modules[1][name])) for name, module in modules[0].items())


def _own(module: nn.Module) -> dict[str, Any]:
    """The module's attributes, without those of torch."""
    plain = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    return {**plain, **{f"buffer {name}": buffer for name, buffer in module.named_buffers(recurse=False)}}


_OF_TORCH = vars(nn.Module()).keys()


def _equal_values(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return not one.is_meta and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal_values(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal_values, one, other))
    return isinstance(one, str | int | float | None | frozenset | set) and one == other


def _together(found: Sequence[tuple[Bias | None, int]]) -> Bias | None:
    """One bias of the whole batch, of biases for so many of its rows each, one after another."""
    beside = _of_positions([(positional_part(bias), rows) for bias, rows in found])
    if not any(isinstance(bias, ScoreBias) for bias, _ in found):
        return beside
    sizes = [rows for _, rows in found]

    def read(q: Tensor, scores: Tensor, query: Tensor, key: Tensor) -> Tensor:
        parts = zip(found, q.split(sizes), scores.split(sizes), strict=True)
        return torch.cat([
            bias.read(queries, part, query, key) if isinstance(bias, ScoreBias) else torch.zeros_like(part)
            for (bias, _), queries, part in parts
        ])  # fmt: skip

    return ScoreBias(read, tuple(t for bias, _ in found for t in learned_tensors(bias)), beside, whole_batch=True)


def _of_positions(found: Sequence[tuple[PositionBias | None, int]]) -> PositionBias | None:
    if all(bias is None for bias, _ in found):
        return None
    linear = [(bias.slopes, rows) for bias, rows in found if isinstance(bias, LinearBias)]
    if len(linear) == len(found):
        heads = max(slopes.shape[-1] for slopes, _ in linear)
        return LinearBias(torch.cat([slopes.expand(rows, heads) for slopes, rows in linear]))
    tensors = tuple(t for bias, _ in found for t in learned_tensors(bias))
    return MatrixBias(lambda query, key: _matrices(found, query, key), tensors)


def _matrices(found: Sequence[tuple[PositionBias | None, int]], query: Tensor, key: Tensor) -> Tensor:
    """[K * B, 1 or heads, Tq, Tk] of biases [1 or heads, Tq, Tk] or none, each for so many rows."""
    none = torch.zeros(1, len(query), len(key), device=query.device)
    matrices = [none if bias is None else bias.matrix(query, key) for bias, _ in found]
    heads = max(matrix.shape[-3] for matrix in matrices)
    shapes = [(rows, heads, len(query), len(key)) for _, rows in found]
    return torch.cat([matrix.expand(shape) for matrix, shape in zip(matrices, shapes, strict=True)])
