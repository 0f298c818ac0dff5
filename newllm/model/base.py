"""What every language model of newllm has, whatever it computes with."""

from typing import Any

from torch import Tensor, nn

from newllm.position.base import PositionEncoding


class LanguageModel(nn.Module):
    """A causal language model: ``model(input_ids [B, T]) -> logits [B, T, vocab_size]``.

    hidden_size: width of the states that meet the head. seq_len: the training length. embed: the input embedding.
    head: the output matrix where it is one of its own, else None. position: the encoding, or one that does nothing.
    blocks: the layers, one after another, whose states become those that meet the head.
    """

    hidden_size: int
    vocab_size: int
    seq_len: int
    embed: nn.Embedding
    head: nn.Module | None
    position: PositionEncoding
    blocks: nn.ModuleList

    @property
    def head_weight(self) -> nn.Parameter:
        """[vocab_size, hidden_size]; the embedding itself when tied."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, cache: Any = None) -> Tensor:
        """Logits [B, T, vocab_size] of input_ids [B, T]; with a cache, of these tokens after those it holds."""
        raise NotImplementedError

    def hidden(self, input_ids: Tensor, cache: Any = None, start: int = 0) -> Tensor:
        """States [B, T, hidden_size] that meet the head. start: the first token's position (a cache knows better)."""
        raise NotImplementedError

    def auxiliary(self) -> Tensor | None:
        """What the last forward pass in training adds to the loss for each of its rows [B], weighted; None: nothing.

        A row's is a mean over its tokens. Handed out once.
        """
        return None

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> Any:
        """An empty cache for `capacity` tokens (default: the training length); `batch` rows decode side by side."""
        raise NotImplementedError
