"""Several encodings at once."""

from typing import Any, cast

from torch import Tensor, nn

from newllm.build import build
from newllm.position.bias import Bias, add
from newllm.position.encoding import PositionEncoding


class Sum(PositionEncoding):
    """Combines encodings, e.g. RoPE + ALiBi: applies input changes and rotations in turn and adds the biases.

    parts: name -> node of an encoding. Each part acts in its own `layers`.
    """

    def __init__(self, parts: dict[str, Any], *, num_layers: int, **sizes: int):
        super().__init__(num_layers=num_layers)
        sizes |= {"num_layers": num_layers}
        self._set_parts({name: build(node, PositionEncoding, **sizes) for name, node in parts.items()})

    def _set_parts(self, parts: dict[str, PositionEncoding]) -> None:
        self.parts = nn.ModuleDict(parts)
        self.rotates = any(part.rotates for part in parts.values())
        self.relative = all(part.relative for part in parts.values())
        self.limit = min((part.limit for part in parts.values() if part.limit is not None), default=None)

    def _each(self) -> list[PositionEncoding]:
        return cast(list[PositionEncoding], list(self.parts.values()))

    def at_layer(self, layer: int) -> PositionEncoding | None:
        at_layer = {name: part.at_layer(layer) for name, part in zip(self.parts, self._each(), strict=True)}
        acting = {name: part for name, part in at_layer.items() if part is not None}
        if not acting:
            return None
        view = Sum.__new__(Sum)  # of the same modules, so that parameters are shared
        PositionEncoding.__init__(view, [], num_layers=0)
        view._set_parts(acting)
        return view

    def at_input(self, x: Tensor, positions: Tensor) -> Tensor:
        for part in self._each():
            x = part.at_input(x, positions)
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        for part in self._each():
            q, k = part.rotate(q, k, positions)
        return q, k

    def bias(self) -> Bias | None:
        total: Bias | None = None
        for part in self._each():
            total = add(total, part.bias())
        return total

    def adapt(self, length: int) -> None:
        for part in self._each():
            part.adapt(length)

    def pairs(self) -> list[tuple[int, int, float]]:
        return [pair for part in self._each() for pair in part.pairs()]
