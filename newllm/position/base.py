"""The contract of a position encoding: three optional methods."""

from torch import Tensor, nn

from newllm.errors import ConfigError
from newllm.position.bias import Bias


class PositionEncoding(nn.Module):
    """An encoding says where a token stands at the input, by rotating queries and keys, or by a bias on the scores.

    A subclass overrides what it needs. One object serves all the layers of a model, so its parameters count once.
    Options stand before the ``*`` of ``__init__``; sizes after it (`num_layers`, `heads`, `head_dim`, `hidden_size`,
    `seq_len`) are handed over by the model, only those that the signature names.

    layers: "all", or the list of layers (0 first) in which the encoding acts; elsewhere the layer has none.
    """

    rotates = False  # rotate() changes q and k; latent attention then carries a rotary key of its own
    relative = True  # the model's output depends on differences of positions only
    limit: int | None = None  # first position that the encoding has no value for

    def __init__(self, layers: str | list[int] = "all", *, num_layers: int):
        super().__init__()
        if layers == "all":
            layers = list(range(num_layers))
        if isinstance(layers, str) or any(not 0 <= layer < num_layers for layer in layers):
            raise ConfigError(
                f"pos_encoding.layers must be 'all' or a list of layers from 0 to {num_layers - 1}, "
                f"as in pos_encoding.layers=[0,{num_layers - 1}]; got {layers}."
            )
        self.layers = frozenset(layers)

    def at_layer(self, layer: int) -> "PositionEncoding | None":
        """What acts in this layer: the encoding itself, a part of it, or None."""
        return self if layer in self.layers else None

    def at_input(self, x: Tensor, positions: Tensor) -> Tensor:
        """The layer's input x [B, T, hidden] with the positions [T] written into it."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """q [B, H, T, D] and k [B, H or fewer, T, D], turned by their positions [T]."""
        return q, k

    def bias(self) -> Bias | None:
        """What is added to the scaled scores."""
        return None

    def pairs(self) -> list[tuple[int, int, float]]:
        """Rotary pairs as (dim, dim, inverse frequency) within the width that rotate() sees."""
        return []
