"""Embeddings of a finished run, whatever its model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor

from newllm.console import Console
from newllm.data import Dataset, Tokenizer
from newllm.errors import ConfigError
from newllm.runtime import Runtime
from newllm.store.run_directory import RunDirectory
from newllm.two_phase.embeddings.base import Embeddings, check_rows, check_width, same_ids

T = TypeVar("T")

WEIGHT = "model.embed.weight"


class FromRun(Embeddings):
    """The input embeddings of the best weights of the run in the folder `run`, which had the same tokenizer."""

    def __init__(self, run: str | None = None) -> None:
        self.run = run

    def check(self, cfg: DictConfig, tokenizer: Tokenizer, embed_dim: int) -> None:
        directory, typed = self._directory(), f"embeddings.run={self.run}"
        rows, width = shape(directory)
        theirs = Tokenizer.load(directory.tokenizer)
        if not same_ids(theirs, tokenizer):
            raise ConfigError(
                f"{typed} knows the {theirs.vocab_size:,} ids of its own tokenizer, which mean other text than those "
                f"of data.tokenizer={cfg.data.tokenizer}; type data.tokenizer={directory.tokenizer}."
            )
        check_width(typed, width, cfg, embed_dim)
        check_rows(typed, rows, cfg, tokenizer)

    def matrix(self, cfg: DictConfig, data: Dataset, embed_dim: int, runtime: Runtime, console: Console) -> Tensor:
        directory = self._directory()
        console.line(f"Embeddings: those of the run {directory.path}.")
        return weights(directory)

    def _directory(self) -> RunDirectory:
        if not self.run:
            raise ConfigError("embeddings=run takes those of a finished run; type embeddings.run=FOLDER.")
        directory = RunDirectory(Path(self.run).expanduser())
        if not directory.config():
            raise ConfigError(f"embeddings.run={self.run} is no run directory; type the folder of a finished run.")
        if not directory.is_done():
            raise ConfigError(
                f"embeddings.run={self.run} is not done but {directory.observed()}; the command that started it goes "
                "on with it."
            )
        return directory.trained


def shape(directory: RunDirectory) -> tuple[int, int]:
    """(ids, width) of a run's embeddings, without reading them."""
    rows, width = _read(directory, lambda file: file.get_slice(WEIGHT).get_shape())
    return rows, width


def weights(directory: RunDirectory) -> Tensor:
    """The embeddings [ids, width] of a run's best weights."""
    return _read(directory, lambda file: file.get_tensor(WEIGHT))


def _read(directory: RunDirectory, take: Callable[[Any], T]) -> T:
    try:
        with safe_open(directory.best_checkpoint, "pt") as file:
            return take(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"the embeddings of {directory.path} can't be read ({error}); type the folder of another run."
        ) from None
