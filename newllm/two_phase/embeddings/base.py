"""What every source of embeddings can do: be checked before anything is written, and fill a model."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from torch import Tensor

from newllm.console import Console
from newllm.data import Dataset, Tokenizer
from newllm.errors import ConfigError
from newllm.runtime import Runtime

if TYPE_CHECKING:
    from newllm.model import LanguageModel


class Embeddings(ABC):
    """A matrix [ids, width] that a model's input embeddings start from; whether they train is for the model to say."""

    @abstractmethod
    def check(self, cfg: DictConfig, tokenizer: Tokenizer, embed_dim: int) -> None:
        """ConfigError unless the matrix is of this width and of this tokenizer's ids. Writes nothing."""

    @abstractmethod
    def matrix(self, cfg: DictConfig, data: Dataset, embed_dim: int, runtime: Runtime, console: Console) -> Tensor:
        """The matrix [ids or more, embed_dim], made if need be."""

    def fill(self, model: "LanguageModel", data: Dataset, cfg: DictConfig, runtime: Runtime, console: Console) -> None:
        """Copy the matrix into `model.embed`, which keeps what it is: frozen stays frozen.

        Rows of ids that the tokenizer does not have, on either side, are left as they are.
        """
        weight = model.embed.weight
        matrix = self.matrix(cfg, data, model.embed.embedding_dim, runtime, console)
        with torch.no_grad():
            rows = min(len(weight), len(matrix))
            weight[:rows] = matrix[:rows]


def check_width(source: str, width: int, cfg: DictConfig, embed_dim: int) -> None:
    """ConfigError unless `source`, of this width, fits the model. source: as typed, ``embeddings.name=gpt2``."""
    if width != embed_dim:
        option = "model.embed_dim" if "embed_dim" in cfg.model else "model.hidden_size"
        raise ConfigError(
            f"{source} has embeddings of {width} dims and {option} is {embed_dim}; type {option}={width}."
        )


def check_rows(source: str, rows: int, cfg: DictConfig, tokenizer: Tokenizer) -> None:
    """ConfigError unless `source` has a row for every id of the tokenizer."""
    if rows < tokenizer.vocab_size:
        raise ConfigError(
            f"{source} has embeddings of {rows:,} ids and data.tokenizer={cfg.data.tokenizer} has "
            f"{tokenizer.vocab_size:,}; type the data.tokenizer it was trained with."
        )


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Does every id mean the same text to both?"""
    return one.backend.get_vocab() == other.backend.get_vocab()
