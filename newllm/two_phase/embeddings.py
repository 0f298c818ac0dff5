"""Stages that load or train a model's input embeddings before training."""

import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from newllm.checks import at_least
from newllm.config import compose, run_directory
from newllm.data import Dataset, Tokenizer
from newllm.data.corpora.hub import require_hub
from newllm.data.disk_cache import cache_folder, locked
from newllm.data.tokenizer import pretrained as pretrained_tokenizer
from newllm.errors import ConfigError, Interrupted
from newllm.model import LanguageModel, build_model
from newllm.run.execute import run as train
from newllm.run.stage import Stage, StageResult
from newllm.store.atomic import remove
from newllm.store.intact import Damaged, is_file
from newllm.store.run_directory import RunDirectory
from newllm.training.checkpoint import load_part, read_tensor
from newllm.training.run_context import Run

HEAD_DIM = 64  # of the small transformer if its width is a multiple of this; otherwise it has one head
WEIGHT = "model.embed.weight"
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
NAMES = ("wte.weight", "embed_in.weight", "embed_tokens.weight", "word_embeddings.weight")  # GPT-2, NeoX, Llama, BLOOM


class Embeddings(Stage):
    """Initialises a model's input embeddings from a matrix [ids, width]. Frozen embeddings stay frozen.

    Rows without a counterpart in the matrix keep their initial values.
    """

    def run(self, run: Run) -> StageResult:
        weight, checkpoint = run.model.embed.weight, run.directory.last_checkpoint
        if checkpoint.exists() and not weight.requires_grad:  # the checkpoint has the same matrix
            load_part(checkpoint, "embed.weight", weight)
            return StageResult()
        matrix = self.matrix(run)
        with torch.no_grad():
            rows = min(len(weight), len(matrix))
            weight[:rows] = matrix[:rows]
        return StageResult()

    @abstractmethod
    def matrix(self, run: Run) -> Tensor:
        """The matrix [at least ids, embed_dim]; trains it if necessary."""


class Corpus(Embeddings):
    """The tied embeddings of a small language model (`model=tiny` of the same width) trained on the corpus.

    An ordinary run trains it once for all runs with the same data node and the same options, and resumes after an
    interruption. Its folder is `<cache folder>/embeddings/<slug>-<signature>`; other processes wait for it.

    tokens: training text: `same`, the rows of the run itself; `all`, the whole corpus except the validation text; or
        the number of tokens. The validation text and the tokenizer are always those of the run.
    num_layers, epochs, lr: of that run. batch_tokens: tokens per step, in whole rows.
    seed: of that run, so that runs with different seeds share the embeddings.
    """

    def __init__(
        self,
        tokens: int | Literal["same", "all"] = "same",
        num_layers: int = 1,
        epochs: int = 1,
        batch_tokens: int = 2048,
        lr: float = 1e-3,
        seed: int = 42,
    ) -> None:
        at_least("embeddings.tokens", 1 if isinstance(tokens, str) else tokens, 1, 5000)
        at_least("embeddings.batch_tokens", batch_tokens, 1, 2048)
        at_least("embeddings.epochs", epochs, 1, 1)
        self.tokens, self.num_layers, self.epochs = tokens, num_layers, epochs
        self.batch_tokens, self.lr, self.seed = batch_tokens, lr, seed

    def check(self, cfg: DictConfig, model: LanguageModel, data: Dataset) -> None:
        if self.tokens != "same" and cfg.data.split != "document":
            raise ConfigError(
                f"embeddings.tokens={self.tokens} would train on validation rows of this run, since data.split="
                f"{cfg.data.split} selects them by the amount of text; type embeddings.tokens=same."
            )
        with torch.device("meta"):  # raises ConfigError for impossible sizes
            transformer = self._config(cfg, model.embed.embedding_dim, cfg.runtime.threads)
            build_model(transformer, tokens=data.tokenizer.vocab_size)

    def matrix(self, run: Run) -> Tensor:
        if self.tokens != "same" and np.may_share_memory(run.data.stream("train"), run.data.stream("val")):
            raise ConfigError(
                "the corpus is a single document, whose last rows are the validation text, and "
                f"embeddings.tokens={self.tokens} would train on them; type embeddings.tokens=same."
            )
        cfg = self._config(run.cfg, run.model.embed.embedding_dim, run.runtime.threads)
        folder = run_directory(cfg, cache_folder(run.runtime) / "embeddings")
        directory = RunDirectory(folder)
        try:
            return self._trained(run, cfg, directory)
        except Damaged as error:
            run.console.line(f"{str(error).partition(';')[0]}, so the embeddings are trained again.")
            with locked(folder, "embeddings"):
                remove(folder)
            return self._trained(run, cfg, directory)

    def _trained(self, run: Run, cfg: DictConfig, directory: RunDirectory) -> Tensor:
        """The embeddings of the run in `directory`, which is trained first unless it is done. Raises Damaged."""
        folder = directory.path
        if directory.is_done():
            directory.require_intact()
            run.console.line(f"Embeddings: trained on this text already, by the run {folder}.")
        else:
            run.console.line(f"Embeddings: trained on this text first, by an ordinary run in {folder}.")
            with locked(folder, "embeddings"):
                if not directory.is_done():  # another process may have trained them while this one waited
                    with open_dict(cfg):
                        cfg.run_dir = str(folder)
                    if status := train(cfg):
                        raise Interrupted(status - 128)
            run.runtime.apply()  # that run has set its own
            run.console.line(f"The embeddings are trained; other runs that need them will load them from {folder}.")
        return read_tensor(directory.best_checkpoint, WEIGHT).float()

    def _config(self, cfg: DictConfig, embed_dim: int, threads: int | str) -> DictConfig:
        """Configuration of the run that trains the embeddings, on the data of `cfg`."""
        rows = max(1, self.batch_tokens // cfg.data.seq_len)
        composed = compose([
            "model=tiny", f"model.hidden_size={embed_dim}", f"model.num_layers={self.num_layers}",
            f"model.heads={embed_dim // HEAD_DIM if embed_dim % HEAD_DIM == 0 else 1}",
            f"model.mlp_size={8 * embed_dim // 3}",  # as many parameters as two matrices of 4 x the width
            "facts=none", "eval=[loss]",
            f"epochs={self.epochs}", f"batch_size={rows}", f"lr={self.lr}", "optim.embedding_rate=1.0",
            f"seed={self.seed}", f"precision={cfg.trainer.precision}",
        ])  # fmt: skip
        data: Any = OmegaConf.to_container(cfg.data, resolve=True)
        if self.tokens != "same":
            data |= {"documents": None, "samples": None, "tokens": None if self.tokens == "all" else self.tokens}
        runtime: Any = OmegaConf.to_container(cfg.runtime, resolve=True)
        with open_dict(composed):
            composed.data = data
            composed.choices.data = (cfg.get("choices") or {}).get("data") or composed.choices.data
            composed.runtime = runtime | {"threads": threads}
        return composed


class _Stored(Embeddings):
    """Embeddings from a .safetensors file. setting: the option that names it, such as ``embeddings.name=gpt2``."""

    setting: str

    @abstractmethod
    def find(self) -> tuple[str, str]:
        """The file and the name of the matrix in it; raises ConfigError if there is none."""

    @abstractmethod
    def tokenizer_of(self, cfg: DictConfig, data: Dataset) -> tuple[Tokenizer | None, str]:
        """The tokenizer of the matrix (None: unknown), and the value of data.tokenizer that selects it."""

    def check(self, cfg: DictConfig, model: LanguageModel, data: Dataset) -> None:
        path, key = self.find()
        with _opened(path, self.setting) as file:
            rows, width = file.get_slice(key).get_shape()
        tokenizer, choice = self.tokenizer_of(cfg, data)
        ids, selected = data.tokenizer.vocab_size, f"data.tokenizer={cfg.data.tokenizer}"
        if tokenizer is not None and tokenizer.backend.get_vocab() != data.tokenizer.backend.get_vocab():
            raise ConfigError(
                f"{self.setting} was trained with another tokenizer ({tokenizer.vocab_size:,} ids) than "
                f"the {ids:,} of {selected}; type data.tokenizer={choice}."
            )
        if width != model.embed.embedding_dim:
            option = "model.embed_dim" if "embed_dim" in cfg.model else "model.hidden_size"
            raise ConfigError(
                f"{self.setting} has embeddings of {width} dims and {option} is {model.embed.embedding_dim}; "
                f"type {option}={width}."
            )
        if rows < ids or (tokenizer is None and rows != ids):
            raise ConfigError(
                f"{self.setting} has embeddings of {rows:,} ids and {selected} has {ids:,}; type the data.tokenizer "
                "that it was trained with."
            )

    def matrix(self, run: Run) -> Tensor:
        path, key = self.find()
        run.console.line(f"Embeddings: loaded from {self.setting.partition('=')[2]}.")
        return _read(path, key, self.setting)


class FromRun(_Stored):
    """The input embeddings of a finished run's best weights. run: its folder; it must have the same tokenizer."""

    def __init__(self, run: str | None = None) -> None:
        self.folder, self.setting = run, f"embeddings.run={run}"

    def find(self) -> tuple[str, str]:
        return str(self._directory().best_checkpoint), WEIGHT

    def matrix(self, run: Run) -> Tensor:
        path, key = self.find()
        run.console.line(f"Embeddings: loaded from {self.folder}.")
        return read_tensor(Path(path), key).float()

    def tokenizer_of(self, cfg: DictConfig, data: Dataset) -> tuple[Tokenizer, str]:
        folder = self._directory().tokenizer
        return Tokenizer.load(folder), str(folder)

    def _directory(self) -> RunDirectory:
        if not self.folder:
            raise ConfigError("embeddings=run loads the embeddings of a finished run; type embeddings.run=FOLDER.")
        directory = RunDirectory(Path(self.folder).expanduser())
        if not directory.config():
            raise ConfigError(f"{self.setting} is no run directory; type the folder of a finished run.")
        if not directory.is_done():
            raise ConfigError(
                f"{self.setting} is not done but {directory.observed()}; run its command again to finish it."
            )
        return directory.trained


class Pretrained(_Stored):
    """The token embeddings of a pretrained checkpoint in safetensors format, in fp32.

    name: a repository on the Hugging Face hub (its local cache is tried first), or a folder with model.safetensors and,
        to compare ids, a tokenizer.
    """

    def __init__(self, name: str = "gpt2") -> None:
        self.name, self.setting = name, f"embeddings.name={name}"
        self.folder = Path(name).expanduser()

    def tokenizer_of(self, cfg: DictConfig, data: Dataset) -> tuple[Tokenizer | None, str]:
        if cfg.data.tokenizer == self.name:
            return data.tokenizer, self.name
        if self.folder.is_dir() and not any((self.folder / file).exists() for file in TOKENIZERS):
            return None, self.name  # transformers would create an empty one
        with suppress(ConfigError):
            return pretrained_tokenizer(self.name, cache_folder(cfg.runtime)), self.name
        return None, self.name

    def find(self) -> tuple[str, str]:
        path = self._file(FILE)
        if path is None and (index := self._file(INDEX)) is not None:
            files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            path = self._file(files[self._key(files)])
        if path is None:
            raise ConfigError(
                f"{self.setting} has no {FILE}; type the name of a repository on the Hugging Face hub that has one, or "
                "of a folder, or embeddings=corpus."
            )
        with _opened(path, self.setting) as file:
            return path, self._key(file.keys())

    def _key(self, keys: Iterable[str]) -> str:
        matching = [key for key in keys if f".{key}".endswith(tuple(f".{name}" for name in NAMES))]
        if len(matching) != 1:
            raise ConfigError(
                f"{self.setting} has no token embeddings with a known name ({', '.join(NAMES)}); type "
                "embeddings.name=gpt2, or embeddings=corpus."
            )
        return matching[0]

    def _file(self, name: str) -> str | None:
        """Path of a file of the checkpoint, downloaded if necessary; None if there is no such file."""
        if self.folder.is_dir():
            return str(self.folder / name) if (self.folder / name).is_file() else None
        if self.name.count("/") > 1 or self.name.startswith(("/", ".", "~")):
            raise ConfigError(
                f"{self.setting} does not exist; it must be the name of a repository on the Hugging Face hub, as gpt2, "
                f"or a folder with {FILE}."
            )
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
        from transformers.utils.hub import cached_file

        with suppress(OSError):  # not in the local cache
            return str(cached_file(self.name, name, local_files_only=True))
        try:
            require_hub(f"embeddings of {self.name}")
        except ConfigError as error:
            raise ConfigError(
                f"{self.setting} is no folder, and {str(error).partition(';')[0]}; type embeddings=corpus (trained on "
                "the text of the run) or embeddings.name=FOLDER."
            ) from None
        with suppress(OSError):  # no such file or repository, or no network
            return str(cached_file(self.name, name))
        return None


@contextmanager
def _opened(path: str, setting: str) -> Iterator[Any]:
    """Open the .safetensors file; raises ConfigError if it can't be read."""
    is_file(Path(path), f"{setting} needs another file")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} can't be read ({error}); {setting} needs another file.") from None


def _read(path: str, key: str, setting: str) -> Tensor:
    with _opened(path, setting) as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor.float()
