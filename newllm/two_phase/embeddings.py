"""Where a model's input embeddings come from, when they are not its own to learn: a stage before training."""

import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from newllm.config import compose, run_directory
from newllm.data import Dataset, Tokenizer
from newllm.data.cache import cache_folder, locked
from newllm.data.corpora.hub import require_hub
from newllm.data.tokenizer import pretrained as pretrained_tokenizer
from newllm.errors import ConfigError
from newllm.model import LanguageModel, build_model
from newllm.run.execute import run as train
from newllm.run.stage import Stage, StageResult
from newllm.store.run_directory import RunDirectory
from newllm.training.checkpoint import load_part
from newllm.training.context import Run
from newllm.training.signals import Interrupted

HEAD_DIM = 64  # of the small transformer's heads, where the width is a multiple of it; else it has one head
WEIGHT = "model.embed.weight"
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
NAMES = ("wte.weight", "embed_in.weight", "embed_tokens.weight", "word_embeddings.weight")  # GPT-2, NeoX, Llama, BLOOM


class Embeddings(Stage):
    """A matrix [ids, width] that a model's input embeddings start from. Frozen ones stay frozen.

    Rows of ids that the tokenizer does not have, on either side, are left as they are.
    """

    def check(self, cfg: DictConfig, model: LanguageModel, data: Dataset) -> None:
        self.check_source(cfg, data.tokenizer, model.embed.embedding_dim)

    def run(self, run: Run) -> StageResult:
        weight, checkpoint = run.model.embed.weight, run.directory.last_checkpoint
        if checkpoint.exists() and not weight.requires_grad:  # the checkpoint still has what was filled in
            load_part(checkpoint, "embed.weight", weight)
            return StageResult()
        matrix = self.matrix(run)
        with torch.no_grad():
            rows = min(len(weight), len(matrix))
            weight[:rows] = matrix[:rows]
        return StageResult()

    @abstractmethod
    def check_source(self, cfg: DictConfig, tokenizer: Tokenizer, embed_dim: int) -> None:
        """Raise ConfigError unless the matrix is of this width and of this tokenizer's ids. Writes nothing."""

    @abstractmethod
    def matrix(self, run: Run) -> Tensor:
        """The matrix [ids or more, embed_dim], made if need be."""


class Corpus(Embeddings):
    """The tied embeddings of a small transformer (`model=tiny`, this wide) that predicts the next token of the corpus.

    It is a run like any other: made once for all runs that agree in the data node and in these options, resumed where
    it broke off, found in `<cache folder>/embeddings/<slug>-<signature>`. Another process that needs it waits.

    tokens: what it trains on: `same`, the rows of the run itself; `all`, the whole corpus but what validates; or so
        many tokens of it. What validates and the tokenizer are the run's in any case.
    num_layers, epochs, lr: of that run. batch_tokens: tokens in a step, in whole rows.
    seed: its own, so that runs with other seeds share the embeddings.
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
        for name, value in (("tokens", tokens), ("batch_tokens", batch_tokens), ("epochs", epochs)):
            if not isinstance(value, str) and value <= 0:
                raise ConfigError(
                    f"embeddings.{name} must be greater than 0, not {value}; leave it out for its default."
                )
        self.tokens, self.num_layers, self.epochs = tokens, num_layers, epochs
        self.batch_tokens, self.lr, self.seed = batch_tokens, lr, seed

    def check_source(self, cfg: DictConfig, tokenizer: Tokenizer, embed_dim: int) -> None:
        if self.tokens != "same" and cfg.data.split != "document":
            raise ConfigError(
                f"embeddings.tokens={self.tokens} would train on rows that validate here, since data.split="
                f"{cfg.data.split} takes other rows of another budget; type embeddings.tokens=same."
            )
        with torch.device("meta"):  # raises ConfigError for impossible sizes
            build_model(self._config(cfg, embed_dim, cfg.runtime.threads), tokens=tokenizer.vocab_size)

    def matrix(self, run: Run) -> Tensor:
        if self.tokens != "same" and np.may_share_memory(run.data.stream("train"), run.data.stream("val")):
            raise ConfigError(
                "the corpus is a single document, of which the last rows validate, and "
                f"embeddings.tokens={self.tokens} would train on them; type embeddings.tokens=same."
            )
        mine = self._config(run.cfg, run.model.embed.embedding_dim, run.runtime.threads)
        folder = run_directory(mine, cache_folder(run.runtime) / "embeddings")
        directory = RunDirectory(folder)
        if directory.is_done():
            run.console.line(f"Embeddings: trained on this text already, by the run {folder}.")
            return _read(str(directory.best_checkpoint), WEIGHT, "embeddings=corpus")
        run.console.line(f"Embeddings: trained on this text first, by an ordinary run in {folder}.")
        with locked(folder, "embeddings"):
            if not directory.is_done():  # another process may have trained them while this one waited
                with open_dict(mine):
                    mine.run_dir = str(folder)
                if status := train(mine):
                    raise Interrupted(status - 128)
        run.runtime.apply()  # as it was before that run
        run.console.line(f"The embeddings are trained; runs that need the same ones take them from {folder}.")
        return _read(str(directory.best_checkpoint), WEIGHT, "embeddings=corpus")

    def _config(self, cfg: DictConfig, embed_dim: int, threads: int | str) -> DictConfig:
        """The ordinary run: the defaults, but for what is said here, on the data node of `cfg`."""
        rows = max(1, self.batch_tokens // cfg.data.seq_len)
        made = compose([
            "model=tiny", f"model.hidden_size={embed_dim}", f"model.num_layers={self.num_layers}",
            f"model.heads={embed_dim // HEAD_DIM if embed_dim % HEAD_DIM == 0 else 1}",
            f"model.mlp_size={8 * embed_dim // 3}",  # as many parameters as two matrices of 4 x the width
            "facts=none", "eval=[loss]",
            f"epochs={self.epochs}", f"batch_size={rows}", f"lr={self.lr}", f"seed={self.seed}",
            f"precision={cfg.trainer.precision}",
        ])  # fmt: skip
        data: Any = OmegaConf.to_container(cfg.data, resolve=True)
        if self.tokens != "same":
            data |= {"documents": None, "samples": None, "tokens": None if self.tokens == "all" else self.tokens}
        runtime: Any = OmegaConf.to_container(cfg.runtime, resolve=True)
        with open_dict(made):
            made.data = data
            made.choices.data = (cfg.get("choices") or {}).get("data") or made.choices.data
            made.runtime = runtime | {"threads": threads}
        return made


class _Stored(Embeddings):
    """A matrix in a .safetensors file.

    typed: the option that names it, ``embeddings.name=gpt2``; known_as: what the user calls it.
    """

    typed: str
    known_as: str

    @abstractmethod
    def find(self) -> tuple[str, str]:
        """The file and the name of the matrix in it. Raises ConfigError if there is none."""

    @abstractmethod
    def tokenizer_of(self, cfg: DictConfig, mine: Tokenizer) -> tuple[Tokenizer | None, str]:
        """The tokenizer whose ids the matrix has, None if it is unknown, and the data.tokenizer that chooses it."""

    def check_source(self, cfg: DictConfig, tokenizer: Tokenizer, embed_dim: int) -> None:
        (path, key), (theirs, choice) = self.find(), self.tokenizer_of(cfg, tokenizer)
        with _opened(path, self.typed) as file:
            rows, width = file.get_slice(key).get_shape()
        mine = f"data.tokenizer={cfg.data.tokenizer}"
        if theirs is not None and theirs.backend.get_vocab() != tokenizer.backend.get_vocab():
            raise ConfigError(
                f"{self.typed} knows the {theirs.vocab_size:,} ids of its own tokenizer, which mean other text than "
                f"the {tokenizer.vocab_size:,} of {mine}; type data.tokenizer={choice}."
            )
        if width != embed_dim:
            option = "model.embed_dim" if "embed_dim" in cfg.model else "model.hidden_size"
            raise ConfigError(
                f"{self.typed} has embeddings of {width} dims and {option} is {embed_dim}; type {option}={width}."
            )
        if rows < tokenizer.vocab_size or (theirs is None and rows != tokenizer.vocab_size):
            raise ConfigError(
                f"{self.typed} has embeddings of {rows:,} ids and {mine} has {tokenizer.vocab_size:,}; type the "
                "data.tokenizer it was trained with."
            )

    def matrix(self, run: Run) -> Tensor:
        path, key = self.find()
        run.console.line(f"Embeddings: those of {self.known_as}.")
        return _read(path, key, self.typed)


class FromRun(_Stored):
    """The input embeddings of the best weights of the run in the folder `run`, which had the same tokenizer."""

    def __init__(self, run: str | None = None) -> None:
        self.folder, self.typed, self.known_as = run, f"embeddings.run={run}", f"the run {run}"

    def find(self) -> tuple[str, str]:
        return str(self._directory().best_checkpoint), WEIGHT

    def tokenizer_of(self, cfg: DictConfig, mine: Tokenizer) -> tuple[Tokenizer, str]:
        folder = self._directory().tokenizer
        return Tokenizer.load(folder), str(folder)

    def _directory(self) -> RunDirectory:
        if not self.folder:
            raise ConfigError("embeddings=run takes those of a finished run; type embeddings.run=FOLDER.")
        directory = RunDirectory(Path(self.folder).expanduser())
        if not directory.config():
            raise ConfigError(f"{self.typed} is no run directory; type the folder of a finished run.")
        if not directory.is_done():
            raise ConfigError(
                f"{self.typed} is not done but {directory.observed()}; the command that started it goes on with it."
            )
        return directory.trained


class Pretrained(_Stored):
    """The token embeddings of a checkpoint in safetensors, in fp32; position embeddings and all else are not read.

    name: repository on the hub (looked for in the hub's cache on this machine first), or a folder with
        model.safetensors, and the tokenizer where its ids are to be compared.
    """

    def __init__(self, name: str = "gpt2") -> None:
        self.name, self.typed, self.known_as = name, f"embeddings.name={name}", name

    def tokenizer_of(self, cfg: DictConfig, mine: Tokenizer) -> tuple[Tokenizer | None, str]:
        if cfg.data.tokenizer == self.name:
            return mine, self.name
        folder = Path(self.name).expanduser()
        if folder.is_dir() and not any((folder / file).exists() for file in TOKENIZERS):
            return None, self.name  # transformers would make an empty one of the model's configuration
        try:
            return pretrained_tokenizer(self.name, cache_folder(cfg.runtime)), self.name
        except ConfigError:
            return None, self.name

    def find(self) -> tuple[str, str]:
        path = self._path(FILE)
        if path is None and (index := self._path(INDEX)) is not None:
            files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            path = self._path(files[self._key(files)])
        if path is None:
            raise ConfigError(
                f"{self.typed} has no {FILE}; type the name of a repository on the Hugging Face hub that has one, or "
                "of a folder, or embeddings=corpus."
            )
        with _opened(path, self.typed) as file:
            return path, self._key(file.keys())

    def _key(self, keys: Iterable[str]) -> str:
        found = [key for key in keys if f".{key}".endswith(tuple(f".{name}" for name in NAMES))]
        if len(found) != 1:
            raise ConfigError(
                f"{self.typed} has no token embeddings that are known by name ({', '.join(NAMES)}); type "
                "embeddings.name=gpt2, or embeddings=corpus."
            )
        return found[0]

    def _path(self, file: str) -> str | None:
        """Path of a file of the checkpoint, downloaded if need be; None if there is no such file."""
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            return str(folder / file) if (folder / file).is_file() else None
        if self.name.count("/") > 1 or self.name.startswith(("/", ".", "~")):
            raise ConfigError(
                f"{self.typed} does not exist; it must be the name of a repository on the Hugging Face hub, as gpt2, "
                f"or a folder with {FILE}."
            )
        if cached := self._cached(file, offline=True):
            return cached
        try:
            require_hub(f"embeddings of {self.name}")
        except ConfigError as error:
            raise ConfigError(
                f"{self.typed} is no folder, and {str(error).partition(';')[0]}; type embeddings=corpus (which trains "
                "them on the text of the run) or embeddings.name=FOLDER."
            ) from None
        return self._cached(file, offline=False)

    def _cached(self, file: str, offline: bool) -> str | None:
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
        from transformers.utils.hub import cached_file

        try:
            path: str | None = cached_file(self.name, file, local_files_only=offline)
        except OSError:  # no such file or repository, or no network
            return None
        return path


@contextmanager
def _opened(path: str, typed: str) -> Iterator[Any]:
    """The .safetensors file; ConfigError where it can't be read."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} can't be read ({error}); {typed} needs another one.") from None


def _read(path: str, key: str, typed: str) -> Tensor:
    with _opened(path, typed) as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor.float()
