"""What every language model of newllm has, whatever it computes with."""

from typing import Any, ClassVar, Literal

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from newllm.data import Dataset
from newllm.position.encoding import PositionEncoding


class LanguageModel(nn.Module):
    """A causal language model: ``model(input_ids [B, T]) -> logits [B, T, vocab_size]``.

    hidden_size: width of the states that meet the head. seq_len: the training length. embed: the input embedding.
    head: the output matrix where it is one of its own, else None. position: the encoding, or one that does nothing.
    blocks: the layers, one after another, whose states become those that meet the head.
    reported_parts: submodules whose parameters are counted by themselves, too.
    """

    reported_parts: ClassVar[tuple[str, ...]] = ()

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
        """The weighted auxiliary loss of the last forward pass in training, for each row [B]; None if there is none.

        A row's loss is a mean over its tokens. A second call gives None.
        """
        return None

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> Any:
        """An empty cache for `capacity` tokens (default: the training length); `batch` rows decode side by side."""
        raise NotImplementedError

    def check_run(self, cfg: DictConfig, trained: bool) -> None:
        """Raise ConfigError for settings of a run that this model cannot have. Its text has not been read yet.

        trained: the run is done, and its model is only looked at.
        """

    def arranged(self, data: Dataset) -> Dataset:
        """The same text in the rows that this model reads."""
        return data

    def as_trained(self, data: Dataset, device: torch.device, precision: Literal["fp32", "bf16"]) -> Dataset:
        """`data` as a stage before training had left it, made again for evaluation."""
        return data

    def reader(self, data: Dataset) -> "LanguageModel":
        """The model that takes the inputs of these rows: itself, unless they hold what a stage before training made."""
        return self
