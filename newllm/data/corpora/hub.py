"""Data sets of the Hugging Face hub, streamed: only what the budget needs is downloaded."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from newllm.config.content import content_hash
from newllm.config.groups import group_of
from newllm.data.corpora.corpus import Corpus, Piece
from newllm.errors import ConfigError

OFFLINE_CHOICES = "type data=stdlib or data=text data.path=FILE_OR_FOLDER, which need no network"


@dataclass
class Hub(Corpus):
    """Each row is a document.

    name: repository on the hub, or a folder in the hub's layout. Without a network the hub's cache is read.
    config: its configuration, if it has several.
    revision: commit, tag or branch.
    hub_split: the split of the repository to read (`split` is newllm's own).
    val_hub_split: another split, all of which validates; samples and tokens then count training rows alone.
        null: a part of `hub_split` validates.
    column: holds text, or chat messages (a list of {"role", "content"}), whose contents are joined by newlines.
    """

    name: str | None = None
    config: str | None = None
    revision: str | None = None
    hub_split: str = "train"
    val_hub_split: str | None = None
    column: str = "text"

    streamed = True

    @property
    def own_validation(self) -> bool:
        return self.val_hub_split is not None

    def source(self) -> Iterator[Piece]:
        return self._rows(self.hub_split)

    def validation_source(self) -> Iterator[Piece]:
        assert self.val_hub_split is not None
        return self._rows(self.val_hub_split)

    def _rows(self, split: str) -> Iterator[Piece]:
        if not self.name:
            raise ConfigError("data.name is not set; type data.name=OWNER/NAME, a repository on the hub")
        place, revision = self.name, self.revision
        if not Path(place).is_dir():
            try:
                require_hub(f"data set {place}")
            except ConfigError:
                if not (cached := cached_snapshot(place, revision, "dataset")):
                    raise
                place, revision = str(cached), None
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
        import datasets

        datasets.config.STREAMING_READ_MAX_RETRIES = 3
        datasets.config.STREAMING_READ_RETRY_INTERVAL = 2
        try:
            rows = datasets.load_dataset(place, self.config, split=split, revision=revision, streaming=True)
            for row in rows:
                value = row.get(self.column)
                if isinstance(value, list) and all(isinstance(message, dict) for message in value):
                    value = "\n".join(str(message.get("content", "")) for message in value)
                if not isinstance(value, str):
                    raise ConfigError(
                        f"the data set {self.name} has no text in column {self.column!r} (found: {', '.join(row)}); "
                        "type data.column=COLUMN"
                    )
                yield Piece(value)
        except ConfigError:
            raise
        except Exception as error:  # the client raises some twenty kinds from four libraries
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"the data set {self.name} (config {self.config}, split {split}) could not be read: "
                f"{type(error).__name__}: {reason}; {OFFLINE_CHOICES}"
            ) from error

    def fingerprint(self) -> str:
        found = content_hash(self.name, group_of("data").paths["name"]) if self.name else None
        splits = self.hub_split if self.val_hub_split is None else f"{self.hub_split}+{self.val_hub_split}"
        return f"hub:{found or self.name}:{self.config}:{self.revision}:{splits}:{self.column}"


def cached_snapshot(name: str, revision: str | None, kind: Literal["model", "dataset"]) -> Path | None:
    """The folder of a repository in the hub's cache on this machine, None if it is not there. It may lack files."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=[])
        )
    except (OSError, ValueError):  # not in the cache; no name of a repository
        return None


def require_hub(what: str) -> None:
    """Raises ConfigError at once, not after minutes of retries, if the hub cannot be reached."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
            raise OSError("HF_HUB_OFFLINE is set")
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return  # the hub has answered
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"the Hugging Face hub ({endpoint}) cannot be reached for the {what} ({reason}); {OFFLINE_CHOICES}"
        ) from None
