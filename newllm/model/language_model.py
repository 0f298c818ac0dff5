"""The interface that all language models share."""

from typing import Any, ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from newllm.data import Dataset
from newllm.errors import ConfigError
from newllm.position.encoding import PositionEncoding
from newllm.precision import Precision


class LanguageModel(nn.Module):
    """A causal language model: ``model(input_ids [B, T]) -> logits [B, T, vocab_size]``.

    hidden_size: width of the final states, which the head multiplies. seq_len: the training length. embed: the input
    embedding. head: the output layer, or None if the embedding is used (tied). position: the position encoding, or one
    that does nothing. blocks: the layers in order. rate_divisor: the learning rate of the blocks' matrices is divided
    by it. reported_parts: submodules whose parameters are also counted separately. recompute: whether training computes
    the layers again in the backward pass; None: it cannot.
    """

    reported_parts: ClassVar[tuple[str, ...]] = ()

    hidden_size: int
    vocab_size: int
    seq_len: int
    embed: nn.Embedding
    head: nn.Module | None
    position: PositionEncoding
    blocks: nn.ModuleList
    recompute: bool | None = None
    rate_divisor: float = 1.0

    @property
    def head_weight(self) -> nn.Parameter:
        """[vocab_size, hidden_size]; the embedding's weight if it is tied."""
        weight = self.embed.weight if self.head is None else self.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def hidden_layers(self) -> list[nn.Linear]:
        """The linear layers in the blocks, whose weights are the hidden matrices."""
        return [layer for layer in self.blocks.modules() if isinstance(layer, nn.Linear)]

    def forward(self, input_ids: Tensor, cache: Any = None) -> Tensor:
        """Logits [B, T, vocab_size] of input_ids [B, T]; with a cache, these tokens follow those that it holds."""
        raise NotImplementedError

    def hidden(self, input_ids: Tensor, cache: Any = None, start: int = 0) -> Tensor:
        """Final states [B, T, hidden_size]. start: position of the first token, if there is no cache."""
        raise NotImplementedError

    def auxiliary(self) -> Tensor | None:
        """The weighted auxiliary loss [B] of the last training forward pass, a mean over each row's tokens.

        None if the model has none, or at a second call.
        """
        return None

    def recompute_layers(self) -> None:
        """From now on keep no layer's tensors for the backward pass, which computes them again.

        Raises ConfigError if this model cannot.
        """
        raise ConfigError(
            f"trainer.recompute=true: {type(self).__name__} cannot compute its layers again; leave trainer.recompute "
            "out, trainer.accumulate=2 saves memory too"
        )

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> Any:
        """An empty cache for `batch` rows of up to `capacity` tokens (default: the training length)."""
        raise NotImplementedError

    def check_config(self, cfg: DictConfig, trained: bool) -> None:
        """Raises ConfigError if this model cannot run with these settings; called before any text is read.

        trained: the run has finished, and its model is only evaluated.
        """

    def arrange_rows(self, data: Dataset) -> Dataset:
        """The same text, cut into the rows that this model reads."""
        return data

    def with_stage_inputs(self, data: Dataset, device: torch.device, precision: Precision) -> Dataset:
        """`data` with the inputs that a stage before training computed, recomputed for evaluation."""
        return data

    def model_for_rows(self, data: Dataset) -> "LanguageModel":
        """The model that reads the rows of `data`: itself, unless a stage before training computed their inputs."""
        return self
