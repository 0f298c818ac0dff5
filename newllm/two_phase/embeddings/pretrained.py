"""The embedding matrix of a pretrained model: a repository of the Hugging Face hub, or a folder in its layout."""

import json
import os
from pathlib import Path

from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor

from newllm.console import Console
from newllm.data import Dataset, Tokenizer
from newllm.data.cache import cache_folder
from newllm.data.corpora.hub import require_hub
from newllm.data.tokenizer import pretrained as pretrained_tokenizer
from newllm.errors import ConfigError
from newllm.runtime import Runtime
from newllm.two_phase.embeddings.base import Embeddings, check_rows, check_width, same_ids

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
NAMES = ("wte.weight", "embed_in.weight", "embed_tokens.weight", "word_embeddings.weight")  # GPT-2, NeoX, Llama, BLOOM


class Pretrained(Embeddings):
    """The token embeddings of a checkpoint in safetensors, in fp32; position embeddings and all else are not read.

    name: repository on the hub (looked for in the hub's cache on this machine first), or a folder with
        model.safetensors, and the tokenizer where its ids are to be compared.
    """

    def __init__(self, name: str = "gpt2") -> None:
        self.name = name

    def check(self, cfg: DictConfig, tokenizer: Tokenizer, embed_dim: int) -> None:
        typed = f"embeddings.name={self.name}"
        with safe_open(self._file(), "pt") as file:
            rows, width = file.get_slice(self._key(file.keys())).get_shape()
        theirs = tokenizer if cfg.data.tokenizer == self.name else self._tokenizer(cfg)
        if theirs is None and rows != tokenizer.vocab_size:  # all that can be compared
            raise ConfigError(
                f"{typed} has embeddings of {rows:,} ids and data.tokenizer={cfg.data.tokenizer} has "
                f"{tokenizer.vocab_size:,}; type the data.tokenizer it was trained with."
            )
        if theirs is not None and not same_ids(theirs, tokenizer):
            raise ConfigError(
                f"{typed} knows the {theirs.vocab_size:,} ids of its own tokenizer, which mean other text than the "
                f"{tokenizer.vocab_size:,} of data.tokenizer={cfg.data.tokenizer}; type data.tokenizer={self.name}."
            )
        check_width(typed, width, cfg, embed_dim)
        check_rows(typed, rows, cfg, tokenizer)

    def matrix(self, cfg: DictConfig, data: Dataset, embed_dim: int, runtime: Runtime, console: Console) -> Tensor:
        console.line(f"Embeddings: those of {self.name}.")
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
        """Where a file of the checkpoint lies, downloaded if need be; None if there is no such file."""
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            return str(folder / file) if (folder / file).is_file() else None
        if self.name.count("/") > 1 or self.name.startswith(("/", ".", "~")):
            raise ConfigError(
                f"embeddings.name={self.name} does not exist; it must be the name of a repository on the Hugging Face "
                f"hub, as gpt2, or a folder with {FILE}."
            )
        return self._cached(file, offline=True) or self._downloaded(file)

    def _downloaded(self, file: str) -> str | None:
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
        except OSError:  # of a file that is not there, as of a repository or a network that is not
            return None
        return path
