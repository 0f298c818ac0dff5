"""A released checkpoint: the files of a folder in the layout of the Hugging Face hub, or of a repository on it.

No code of a checkpoint is run, and no pickle is read.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from newllm.data.corpora.hub import cached_snapshot, require_hub
from newllm.errors import ConfigError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")  # each is enough to make a tokenizer
DOWNLOADED = ["*.json", "*.safetensors", "merges.txt", "tokenizer.model"]


@dataclass(frozen=True)
class Checkpoint:
    """name: the repository, or the last name of the folder. revision: as asked for. commit: of the repository."""

    name: str
    folder: Path
    revision: str | None = None
    commit: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json. Raises ConfigError."""
        if not (self.folder / CONFIG).is_file():
            raise ConfigError(
                f"{self.name} has no {CONFIG}; expected a folder that save_pretrained of transformers has written, or "
                "the name of a model on the Hugging Face hub."
            )
        return self._json(CONFIG)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Name of each tensor -> the .safetensors file that holds it. Raises ConfigError."""
        if (self.folder / INDEX).is_file():
            try:
                found = {str(name): str(file) for name, file in self._json(INDEX)["weight_map"].items()}
            except (KeyError, AttributeError):
                raise ConfigError(f"{self.folder / INDEX} has no weight_map; copy the file again.") from None
            for shard in {*found.values()}:
                if Path(shard).name != shard or not (self.folder / shard).is_file():
                    raise ConfigError(f"{self.name} has no {shard}, which {INDEX} names; copy the whole folder.")
            return {name: self.folder / shard for name, shard in found.items()}
        file = self.folder / WEIGHTS
        if not file.is_file():
            raise ConfigError(
                f"{self.name} has no {WEIGHTS}, and pickles such as pytorch_model.bin are not read, since loading one "
                "can run its code; save the model again with transformers' save_pretrained, or name a revision that "
                "has safetensors."
            )
        with self._opened(file) as opened:
            return dict.fromkeys(opened.keys(), file)

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the type in which it is stored. Raises ConfigError."""
        with self._opened(self.files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def require_tokenizer(self) -> None:
        """Raises ConfigError if there is no file to make a tokenizer from."""
        if not any((self.folder / file).is_file() for file in TOKENIZERS):
            raise ConfigError(
                f"{self.name} has no {TOKENIZERS[0]}, without which no text can be read; copy the files of its "
                "tokenizer into the folder."
            )

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path} can't be read as safetensors ({error}); copy the file again.") from None

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{self.folder / name} can't be read as JSON ({error}); copy the file again.") from None
        if not isinstance(content, dict):
            raise ConfigError(f"{self.folder / name} holds no mapping; copy the file again.")
        return content


def find(name: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint in a folder, or of a repository on the hub, downloaded if its cache does not have it.

    revision: branch, tag or commit of the repository. Raises ConfigError.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        if not folder.is_dir():
            raise ConfigError(f"{name} is a file; name the folder that holds {CONFIG} and the weights.")
        if revision is not None:
            raise ConfigError(
                f"--revision {revision} is for a repository on the hub, and {name} is a folder; leave it out."
            )
        return Checkpoint(folder.resolve().name, folder)
    if name.count("/") > 1 or name.startswith(("/", ".", "~")):
        raise ConfigError(f"{name} does not exist; expected a folder with {CONFIG}, or the name of a model on the hub.")
    snapshot = _download(name, revision)
    return Checkpoint(name, snapshot, revision, snapshot.name)


def _download(name: str, revision: str | None) -> Path:
    """The folder of a repository in the hub's cache, whose name is the commit."""
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    from huggingface_hub import errors, snapshot_download

    where = f"{name}{f' at revision {revision}' if revision else ''}"
    try:
        require_hub(f"checkpoint {name}")
    except ConfigError as error:
        if cached := cached_snapshot(name, revision, "model"):
            return cached
        raise ConfigError(
            f"{where} is neither a folder nor in the hub's cache on this machine, and {str(error).partition(';')[0]}; "
            "name a folder, or type the same command with a network."
        ) from None
    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=DOWNLOADED,
            ignore_patterns=["*/*"],  # other formats of the same weights
        )
    except errors.GatedRepoError:
        raise ConfigError(
            f"{name} is gated: accept its terms on its page of the hub, and log in with hf auth login."
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        raise ConfigError(
            f"the Hugging Face hub has no model {where}, or it is private; check the name, or log in with hf auth "
            "login."
        ) from None
    except Exception as error:  # the client raises those of its HTTP library, too
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{where} could not be downloaded ({reason}); type the same command again.") from None
    return Path(found)
