"""What decoding keeps of the tokens it has seen."""

from torch import Tensor

from newllm.errors import ConfigError

_GROWTH = 16  # the storage grows by a sixteenth, so all its copying together is that of a few steps' reading
_LEAST = 64


class LayerCache:
    """One layer's tensors [B, heads, tokens, width], at most `capacity` tokens.

    Their storage grows as tokens come. Its heads lie one after another without gaps but for what it has grown ahead.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._storage: list[Tensor] = []

    def append(self, *new: Tensor) -> list[Tensor]:
        """Add the tokens of each `new` [B, heads, T, width].

        Returns the storages [B, heads, S, width], S >= length: what stands after the first `length` tokens is no token
        (and finite).
        """
        start, stop = self.length, self.length + new[0].shape[2]
        if stop > self.capacity:
            raise ConfigError(
                f"the cache holds {self.capacity} tokens and was asked for {stop}; make it with capacity={stop}."
            )
        if not self._storage or stop > self._storage[0].shape[2]:
            self._grow(new, stop)
        for storage, tensor in zip(self._storage, new, strict=True):
            storage[:, :, start:stop] = tensor
        self.length = stop
        return self._storage

    def select(self, rows: Tensor, capacity: int) -> "LayerCache":
        """A copy with the batch rows `rows` [B'] of this one, which may repeat, and room for `capacity` tokens."""
        copy = LayerCache(capacity)
        if self._storage:
            copy.append(*(storage[rows, :, : self.length] for storage in self._storage))
        return copy

    def _grow(self, new: tuple[Tensor, ...], least: int) -> None:
        size = min(self.capacity, least + max(_LEAST, least // _GROWTH))
        grown = [tensor.new_zeros((*tensor.shape[:2], size, tensor.shape[3])) for tensor in new]
        for storage, tensor in zip(self._storage, grown, strict=False):
            tensor[:, :, : self.length] = storage[:, :, : self.length]
        self._storage = grown

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens held (not of the storage set aside)."""
        return sum(storage[:, :, : self.length].nbytes for storage in self._storage)


class Cache:
    """A model's cache: ``model(ids, cache=cache)`` appends the tokens and returns their logits.

    state: what a recurrence carries from token to token [B, width], of one size however many tokens came; None where
    there is no recurrence, or no token yet.
    """

    def __init__(self, num_layers: int, capacity: int):
        self.layers = [LayerCache(capacity) for _ in range(num_layers)]
        self.state: Tensor | None = None

    def select(self, rows: Tensor, capacity: int) -> "Cache":
        """A copy with the batch rows `rows` [B'] of this one, which may repeat, and room for `capacity` tokens."""
        copy = Cache(0, capacity)
        copy.layers = [layer.select(rows, capacity) for layer in self.layers]
        copy.state = None if self.state is None else self.state[rows]
        return copy

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.layers[0].length

    @property
    def state_bytes(self) -> int:
        """Bytes that do not grow with the tokens."""
        return 0 if self.state is None else self.state.nbytes

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers) + self.state_bytes

    @property
    def bytes_per_token(self) -> float:
        """Bytes per token position, over all layers and the whole batch; the state is no part of them."""
        return (self.nbytes - self.state_bytes) / max(1, self.length)
