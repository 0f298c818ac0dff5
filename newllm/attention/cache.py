"""What decoding keeps of the tokens it has seen."""

import torch
from torch import Tensor

from newllm.errors import ConfigError


class LayerCache:
    """One layer's tensors [B, heads, tokens, width], in storage set aside for `capacity` tokens at the first append."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._storage: list[Tensor] = []

    def append(self, *new: Tensor) -> list[Tensor]:
        """Add the tokens of each `new` [B, heads, T, width]; returns all tokens so far, as views."""
        start, stop = self.length, self.length + new[0].shape[2]
        if stop > self.capacity:
            raise ConfigError(
                f"the cache holds {self.capacity} tokens and was asked for {stop}; make it with capacity={stop}."
            )
        if not self._storage:
            self._storage = [
                torch.empty((*t.shape[:2], self.capacity, t.shape[3]), dtype=t.dtype, device=t.device) for t in new
            ]
        for storage, tensor in zip(self._storage, new, strict=True):
            storage[:, :, start:stop] = tensor
        self.length = stop
        return [storage[:, :, :stop] for storage in self._storage]

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens held (not of the storage set aside)."""
        return sum(storage[:, :, : self.length].nbytes for storage in self._storage)


class Cache:
    """A model's cache: ``model(ids, cache=cache)`` appends the tokens and returns their logits."""

    def __init__(self, num_layers: int, capacity: int):
        self.layers = [LayerCache(capacity) for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def bytes_per_token(self) -> float:
        """Bytes per token position, over all layers and the whole batch."""
        return self.nbytes / max(1, self.length)
