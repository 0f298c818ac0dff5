"""What a context/token model keeps of the tokens it has read: one size, however many they are."""

from torch import Tensor

from newllm.errors import ConfigError


class ContextState:
    """The cache of a ContextToken: the context [B, C] after the last token, and the ids of the last n - 1 tokens.

    capacity: tokens it may be given, as for a cache that grows with them.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.context: Tensor | None = None
        self.before: Tensor | None = None  # [B, n - 1 or fewer]

    def advance(self, tokens: int, context: Tensor, before: Tensor) -> None:
        """So many tokens have been read; what is left of all."""
        self.require(tokens)
        self.length += tokens
        self.context, self.before = context, before

    def require(self, tokens: int) -> None:
        """ConfigError unless there is room for so many more."""
        stop = self.length + tokens
        if stop > self.capacity:
            raise ConfigError(
                f"the cache holds {self.capacity} tokens and was asked for {stop}; make it with capacity={stop}."
            )

    def select(self, rows: Tensor, capacity: int) -> "ContextState":
        """A copy with the batch rows `rows` [B'] of this one, which may repeat, and room for `capacity` tokens."""
        copy = ContextState(capacity)
        if self.context is not None and self.before is not None:
            copy.advance(self.length, self.context[rows], self.before[rows])
        return copy

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.context, self.before) if tensor is not None)

    @property
    def bytes_per_token(self) -> float:
        """All its bytes over the tokens read: it falls as they come."""
        return self.nbytes / max(1, self.length)
