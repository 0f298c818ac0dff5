"""Two encodings at once."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from newllm.build import build
from newllm.position.bias import Bias, add
from newllm.position.encoding import PositionEncoding


class Sum(PositionEncoding):
    """All the parts' contributions: inputs and rotations one after another, biases added, e.g. RoPE + ALiBi.

    parts: name -> node of an encoding. Each part acts in its own `layers`.
    """

    def __init__(self, parts: dict[str, Any], *, num_layers: int, **sizes: int):
        super().__init__(num_layers=num_layers)
        self.parts = nn.ModuleDict({name: build(node, num_layers=num_layers, **sizes) for name, node in parts.items()})
        self._read_parts()

    def _read_parts(self) -> None:
        parts = self._encodings()
        limits = [part.limit for part in parts if part.limit is not None]
        self.rotates = any(part.rotates for part in parts)
        self.relative = all(part.relative for part in parts)
        self.limit = min(limits, default=None)

    def _encodings(self) -> list[PositionEncoding]:
        return [part for part in self.parts.values() if isinstance(part, PositionEncoding)]

    def at_layer(self, layer: int) -> PositionEncoding | None:
        active = {name: part for name, part in self.parts.items() if layer in _layers(part)}
        return _view(active) if active else None

    def at_input(self, x: Tensor, positions: Tensor) -> Tensor:
        for part in self._encodings():
            x = part.at_input(x, positions)
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        for part in self._encodings():
            q, k = part.rotate(q, k, positions)
        return q, k

    def bias(self) -> Bias | None:
        total: Bias | None = None
        for part in self._encodings():
            total = add(total, part.bias())
        return total

    def adapt(self, length: int) -> None:
        for part in self._encodings():
            part.adapt(length)

    def pairs(self) -> list[tuple[int, int, float]]:
        return [pair for part in self._encodings() for pair in part.pairs()]


def _layers(part: nn.Module) -> frozenset[int]:
    assert isinstance(part, PositionEncoding)
    return part.layers


def _view(parts: Mapping[str, nn.Module]) -> Sum:
    """A Sum over modules that exist already (they stay the same objects: parameters are shared, not copied)."""
    view = Sum.__new__(Sum)
    nn.Module.__init__(view)
    view.parts = nn.ModuleDict(parts)
    view.layers = frozenset()
    view._read_parts()
    return view
