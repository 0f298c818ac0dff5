"""Where a model's input embeddings come from, when they are not its own to learn: a stage before training."""

import json
import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

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

T = TypeVar("T")

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
            return _of_run(directory)
        run.console.line(f"Embeddings: trained on this text first, by an ordinary run in {folder}.")
        with locked(folder, "embeddings"):
            if not directory.is_done():  # another process may have trained them while this one waited
                with open_dict(mine):
                    mine.run_dir = str(folder)
                if status := train(mine):
                    raise Interrupted(status - 128)
        run.runtime.apply(run.trainer.devices)  # as it was before that run
        run.console.line(f"The embeddings are trained; runs that need the same ones take them from {folder}.")
        return _of_run(directory)

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


class FromRun(Embeddings):
    """The input embeddings of the best weights of the run in the folder `run`, which had the same tokenizer."""

    def __init__(self, run: str | None = None) -> None:
        self.folder = run

    def check_source(self, cfg: DictConfig, tokenizer: Tokenizer, embed_dim: int) -> None:
        directory = self._directory()
        rows, width = _read(directory, lambda file: file.get_slice(WEIGHT).get_shape())
        _check_fit(
            f"embeddings.run={self.folder}", rows, width, Tokenizer.load(directory.tokenizer),
            f"data.tokenizer={directory.tokenizer}", cfg, tokenizer, embed_dim,
        )  # fmt: skip

    def matrix(self, run: Run) -> Tensor:
        directory = self._directory()
        run.console.line(f"Embeddings: those of the run {directory.path}.")
        return _of_run(directory)

    def _directory(self) -> RunDirectory:
        if not self.folder:
            raise ConfigError("embeddings=run takes those of a finished run; type embeddings.run=FOLDER.")
        directory = RunDirectory(Path(self.folder).expanduser())
        if not directory.config():
            raise ConfigError(f"embeddings.run={self.folder} is no run directory; type the folder of a finished run.")
        if not directory.is_done():
            raise ConfigError(
                f"embeddings.run={self.folder} is not done but {directory.observed()}; the command that started it "
                "goes on with it."
            )
        return directory.trained


class Pretrained(Embeddings):
    """The token embeddings of a checkpoint in safetensors, in fp32; position embeddings and all else are not read.

    name: repository on the hub (looked for in the hub's cache on this machine first), or a folder with
        model.safetensors, and the tokenizer where its ids are to be compared.
    """

    def __init__(self, name: str = "gpt2") -> None:
        self.name = name

    def check_source(self, cfg: DictConfig, tokenizer: Tokenizer, embed_dim: int) -> None:
        with safe_open(self._file(), "pt") as file:
            rows, width = file.get_slice(self._key(file.keys())).get_shape()
        theirs = tokenizer if cfg.data.tokenizer == self.name else self._tokenizer(cfg)
        if theirs is None and rows != tokenizer.vocab_size:  # all that can be compared
            raise _other_rows(f"embeddings.name={self.name}", rows, cfg, tokenizer)
        _check_fit(
            f"embeddings.name={self.name}", rows, width, theirs, f"data.tokenizer={self.name}", cfg, tokenizer,
            embed_dim,
        )  # fmt: skip

    def matrix(self, run: Run) -> Tensor:
        run.console.line(f"Embeddings: those of {self.name}.")
        with safe_open(self._file(), "pt") as file:
            tensor: Tensor = file.get_tensor(self._key(file.keys()))
        return tensor.float()

    def _tokenizer(self, cfg: DictConfig) -> Tokenizer | None:
        """The checkpoint's own, None if it has none that can be read."""
        folder = Path(self.name).expanduser()
        if folder.is_dir() and not any((folder / file).exists() for file in TOKENIZERS):
            return None  # transformers would make an empty one of the model's configuration
        try:
            return pretrained_tokenizer(self.name, cache_folder(cfg.runtime))
        except ConfigError:
            return None

    def _key(self, keys: list[str]) -> str:
        found = [key for key in keys if f".{key}".endswith(tuple(f".{name}" for name in NAMES))]
        if len(found) != 1:
            raise ConfigError(
                f"embeddings.name={self.name} has no token embeddings that are known by name ({', '.join(NAMES)}); "
                "type embeddings.name=gpt2, or embeddings=corpus."
            )
        return found[0]

    def _file(self) -> str:
        """The .safetensors file that has the embeddings."""
        path = self._path(FILE)
        if path is None and (index := self._path(INDEX)) is not None:
            files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            path = self._path(files[self._key([*files])])
        if path is None:
            raise ConfigError(
                f"embeddings.name={self.name} has no {FILE}; type the name of a repository on the Hugging Face hub "
                "that has one, or of a folder, or embeddings=corpus."
            )
        try:
            with safe_open(path, "pt"):
                return path
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path} can't be read ({error}); type embeddings.name=NAME or FOLDER.") from None

    def _path(self, file: str) -> str | None:
        """Path of a file of the checkpoint, downloaded if need be; None if there is no such file."""
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            return str(folder / file) if (folder / file).is_file() else None
        if self.name.count("/") > 1 or self.name.startswith(("/", ".", "~")):
            raise ConfigError(
                f"embeddings.name={self.name} does not exist; it must be the name of a repository on the Hugging Face "
                f"hub, as gpt2, or a folder with {FILE}."
            )
        if cached := self._cached(file, offline=True):
            return cached
        try:
            require_hub(f"embeddings of {self.name}")
        except ConfigError as error:
            raise ConfigError(
                f"embeddings.name={self.name} is no folder, and {str(error).partition(';')[0]}; type embeddings=corpus "
                "(which trains them on the text of the run) or embeddings.name=FOLDER."
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


def _check_fit(
    source: str,
    rows: int,
    width: int,
    theirs: Tokenizer | None,
    suggestion: str,
    cfg: DictConfig,
    tokenizer: Tokenizer,
    embed_dim: int,
) -> None:
    """Raises ConfigError unless the matrix [rows, width] has this tokenizer's ids and the model's width.

    source: as typed, ``embeddings.name=gpt2``. theirs: the tokenizer of the matrix, which `suggestion` chooses; None if
    it is unknown.
    """
    if theirs is not None and theirs.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise ConfigError(
            f"{source} knows the {theirs.vocab_size:,} ids of its own tokenizer, which mean other text than the "
            f"{tokenizer.vocab_size:,} of data.tokenizer={cfg.data.tokenizer}; type {suggestion}."
        )
    if width != embed_dim:
        option = "model.embed_dim" if "embed_dim" in cfg.model else "model.hidden_size"
        raise ConfigError(
            f"{source} has embeddings of {width} dims and {option} is {embed_dim}; type {option}={width}."
        )
    if rows < tokenizer.vocab_size:
        raise _other_rows(source, rows, cfg, tokenizer)


def _other_rows(source: str, rows: int, cfg: DictConfig, tokenizer: Tokenizer) -> ConfigError:
    return ConfigError(
        f"{source} has embeddings of {rows:,} ids and data.tokenizer={cfg.data.tokenizer} has "
        f"{tokenizer.vocab_size:,}; type the data.tokenizer it was trained with."
    )


def _of_run(directory: RunDirectory) -> Tensor:
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
