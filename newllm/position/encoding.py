"""The contract of a position encoding: three optional methods."""

import re

import torch
from torch import Tensor, nn

from newllm.errors import ConfigError
from newllm.position.bias import Bias


class PositionEncoding(nn.Module):
    """Tells the model where a token stands: at a layer's input, by rotating queries and keys, or by biasing the scores.

    A subclass overrides the methods it needs. One object serves all layers of a model, so they share its parameters.
    Arguments before the ``*`` of ``__init__`` are options; those after it (`num_layers`, `heads`, `head_dim`,
    `query_dim`, `hidden_size`, `seq_len`) are sizes, which the model passes if the signature names them. head_dim: of
    what is rotated; query_dim: width of a head's query, without the rotary part that MLA adds.

    layers: the layers in which the encoding acts: "all", a list (0 is the first), or a pattern that fits any depth:
    "every 4th" means layers 3, 7, 11, …, and "all but every 4th" the others.
    """

    rotates = False  # rotate() changes q and k; latent attention then adds a separate rotary key
    relative = True  # the model's output depends only on differences of positions
    limit: int | None = None  # number of positions that the encoding has values for; None: unlimited

    def __init__(self, layers: str | list[int] = "all", *, num_layers: int):
        super().__init__()
        self.layers = _selected_layers(layers, num_layers)

    def at_layer(self, layer: int) -> "PositionEncoding | None":
        """The encoding that acts in this layer: this one, a part of it, or None."""
        return self if layer in self.layers else None

    def at_input(self, x: Tensor, positions: Tensor) -> Tensor:
        """The layer's input x [B, T, hidden] with information about the positions [T] added."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """q [B, H, T, D] and k [B, H or fewer, T, D], rotated according to their positions [T]."""
        return q, k

    def bias(self) -> Bias | None:
        """The bias to add to the scaled scores, if any."""
        return None

    def initial(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        """Initial values of the encoding's own parameter or buffer `name`; all randomness must come from `generator`.

        With None, a parameter is initialized like those of the model (`newllm.model.init`) and a buffer is unchanged.
        """
        return None

    def adapt(self, length: int) -> None:
        """Prepare for inputs of `length` tokens; inference-time scalings without a fixed factor depend on it.

        Call it before an input, never while decoding one: cached keys keep their old rotation. Overrides must write
        buffers in place, since copies of a model may share them.
        """

    def pairs(self) -> list[tuple[int, int, float]]:
        """Rotary pairs as (dim, dim, inverse frequency) within the width that rotate() sees."""
        return []


def _selected_layers(layers: str | list[int], num_layers: int) -> frozenset[int]:
    """The layers that the option `layers` selects."""
    pattern = re.fullmatch(r"(all but )?every ([1-9]\d*)(?:st|nd|rd|th)", layers) if isinstance(layers, str) else None
    if layers == "all":
        return frozenset(range(num_layers))
    if pattern:
        others, n = bool(pattern[1]), int(pattern[2])
        return frozenset(layer for layer in range(num_layers) if ((layer + 1) % n == 0) != others)
    if isinstance(layers, str) or any(not 0 <= layer < num_layers for layer in layers):
        raise ConfigError(
            "pos_encoding.layers must be 'all', a pattern such as 'all but every 4th', or a list of layers from 0 to "
            f"{num_layers - 1}, as in 'pos_encoding.layers=[0,{num_layers - 1}]'; got {layers}."
        )
    return frozenset(layers)
