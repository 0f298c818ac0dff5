"""The KV cache of decoding."""

from torch import Tensor

from newllm.errors import ConfigError

_GROWTH = 16  # the storage grows by a sixteenth, so that copying it costs little next to reading it at every step
_MIN_GROWTH = 64  # tokens


class LayerCache:
    """One layer's cached tensors [B, heads, tokens, width], for at most `capacity` tokens.

    The storage grows in steps and is contiguous; its last tokens may be unused.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._storage: list[Tensor] = []

    def append(self, *new: Tensor) -> list[Tensor]:
        """Add the tokens of each `new` [B, heads, T, width].

        Returns the storages [B, heads, S, width], S >= length. The entries after the first `length` tokens are unused
        (and finite).
        """
        start, stop = self.length, self.length + new[0].shape[2]
        if stop > self.capacity:
            raise ConfigError(
                f"the cache has room for {self.capacity} tokens and {stop} are needed; make it with capacity={stop}."
            )
        if not self._storage or stop > self._storage[0].shape[2]:
            self._grow(new, stop)
        for storage, tensor in zip(self._storage, new, strict=True):
            storage[:, :, start:stop] = tensor
        self.length = stop
        return self._storage

    def select(self, rows: Tensor, capacity: int) -> "LayerCache":
        """A copy of the batch rows `rows` [B'], which may repeat, with room for `capacity` tokens."""
        copy = LayerCache(capacity)
        if self._storage:
            copy.append(*(storage[rows, :, : self.length] for storage in self._storage))
        return copy

    def _grow(self, new: tuple[Tensor, ...], least: int) -> None:
        size = min(self.capacity, least + max(_MIN_GROWTH, least // _GROWTH))
        grown = [tensor.new_zeros((*tensor.shape[:2], size, tensor.shape[3])) for tensor in new]
        for storage, tensor in zip(self._storage, grown, strict=False):
            tensor[:, :, : self.length] = storage[:, :, : self.length]
        self._storage = grown

    @property
    def nbytes(self) -> int:
        """Bytes of the cached tokens, without unused storage."""
        return sum(storage[:, :, : self.length].nbytes for storage in self._storage)


class Cache:
    """A model's cache: ``model(ids, cache=cache)`` appends the tokens and returns their logits.

    state: the state [B, width] of a recurrent model, whose size does not grow with the tokens; None without a
    recurrence, or before the first token.
    """

    def __init__(self, num_layers: int, capacity: int):
        self.layers = [LayerCache(capacity) for _ in range(num_layers)]
        self.state: Tensor | None = None

    def select(self, rows: Tensor, capacity: int) -> "Cache":
        """A copy of the batch rows `rows` [B'], which may repeat, with room for `capacity` tokens."""
        copy = Cache(0, capacity)
        copy.layers = [layer.select(rows, capacity) for layer in self.layers]
        copy.state = None if self.state is None else self.state[rows]
        return copy

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return self.layers[0].length

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent state."""
        return 0 if self.state is None else self.state.nbytes

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers) + self.state_bytes

    @property
    def bytes_per_token(self) -> float:
        """Bytes per token, over all layers and the whole batch, without the recurrent state."""
        return (self.nbytes - self.state_bytes) / max(1, self.length)
