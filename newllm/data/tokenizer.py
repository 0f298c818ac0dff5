"""Tokenizers of the `tokenizers` package: trained here, or read once through transformers."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from newllm.config.content import content_hash
from newllm.config.groups import group_of
from newllm.data.corpora.hub import require_hub
from newllm.data.disk_cache import cache_folder, find_or_build, key_of
from newllm.errors import ConfigError

FILE = "tokenizer.json"
META = "tokenizer.meta.json"
EOT = "<|endoftext|>"  # of a tokenizer trained here


class Tokenizer:
    """Text to ids and back without adding special tokens; a literal end-of-text in the text is plain text.

    vocab_size: number of ids of the model (the configured size of the auto tokenizer, even if its text gave fewer).
    eot_id: end-of-text, or None.
    token_bytes: int64 [vocab_size], UTF-8 bytes of text per id; 0 for end-of-text and special ids.
        Their sum over an encoded text is the length of the text, exactly, for byte-level BPE
        (of the normalised text, where the tokenizer normalises).
    """

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int, eot: str | None) -> None:
        self.backend = backend
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()
        self.vocab_size = vocab_size
        self.eot = eot
        self.eot_id: int | None = backend.token_to_id(eot) if eot is not None else None
        self.token_bytes = _token_bytes(backend, vocab_size)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that identify the tokenizer by its content."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        self.backend.save(str(folder / FILE))
        (folder / META).write_text(json.dumps({"vocab_size": self.vocab_size, "eot": self.eot}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        meta = json.loads((folder / META).read_text())
        return cls(tokenizers.Tokenizer.from_file(str(folder / FILE)), meta["vocab_size"], meta["eot"])


def vocab_size(data_node: Mapping[str, Any], runtime: Any = None) -> int:
    """Number of ids of the data node's tokenizer, without reading any text."""
    if data_node["tokenizer"] == "auto":
        return int(data_node["vocab_size"])
    return pretrained(data_node["tokenizer"], cache_folder(runtime)).vocab_size


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (GPT-2's splitting and byte alphabet) of `vocab_size` ids, including end-of-text."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, vocab_size, EOT)


def pretrained(name: str, cache: Path) -> Tokenizer:
    """The Hugging Face tokenizer `name` (or folder), cached so that transformers reads it only once.

    The folder tokenizer/ of a run is loaded directly.
    """
    folder = Path(name).expanduser()
    if (folder / META).is_file():
        return Tokenizer.load(folder)
    entry = cache / "tokenizers" / key_of(rule=1, tokenizer=identity(name))
    return find_or_build(entry, "tokenizer", Tokenizer.load, lambda new: _from_transformers(name).save(new))[0]


def identity(name: str) -> str:
    """Identifies a Hugging Face tokenizer in the cache: by name, or by the content of its folder."""
    found = content_hash(name, group_of("data").paths["tokenizer"]) if Path(name).expanduser().is_dir() else None
    return f"folder:{found}" if found else f"hub:{name}"


def _from_transformers(name: str) -> Tokenizer:
    folder = Path(name).expanduser()
    if folder.is_dir():
        source = _read(str(folder))
    elif name.count("/") > 1 or name.startswith(("/", ".", "~")):
        raise ConfigError(
            f"data.tokenizer={name} does not exist; expected auto, the name of a Hugging Face tokenizer or a folder "
            "with its tokenizer.json; type data.tokenizer=auto"
        )
    else:
        try:
            source = _read(name, local_files_only=True)
        except ConfigError:  # not in the hub's own cache on this machine
            try:
                require_hub(f"tokenizer {name}")
            except ConfigError as error:
                raise ConfigError(
                    f"data.tokenizer={name} is not a folder, and {str(error).partition(';')[0]}; "
                    "type data.tokenizer=auto or data.tokenizer=FOLDER, which need no network"
                ) from None
            source = _read(name)
    backend = getattr(source, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"data.tokenizer={name} has no fast version (tokenizer.json), which the token store needs; "
            "type data.tokenizer=auto or another NAME or FOLDER"
        )
    if not backend.get_vocab(with_added_tokens=False):  # transformers invents an empty one
        raise ConfigError(
            f"data.tokenizer={name} has no tokenizer.json and no files to make one from; name the folder that has it, "
            "or type data.tokenizer=auto"
        )
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(backend, size, source.eos_token)


def _read(name: str, **options: Any) -> Any:
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # many kinds from several libraries
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"data.tokenizer={name} could not be read as a Hugging Face tokenizer ({reason}); "
            "type data.tokenizer=auto, or the NAME or FOLDER of a tokenizer"
        ) from error


def _token_bytes(backend: tokenizers.Tokenizer, size: int) -> np.ndarray:
    spec = json.loads(backend.to_str())
    prefix = (spec.get("model") or {}).get("continuing_subword_prefix")
    byte_level = '"type": "ByteLevel"' in json.dumps([spec.get("decoder"), spec.get("pre_tokenizer")])
    byte_fallback = re.compile(r"<0x[0-9A-F]{2}>")
    lengths = np.zeros(size, dtype=np.int64)
    for token, index in backend.get_vocab().items():
        if byte_level:  # one character of the GPT-2 byte alphabet per byte
            lengths[index] = len(token)
        elif prefix:  # WordPiece: a word follows a space, a continuation does not
            lengths[index] = len(token.removeprefix(prefix).encode()) + (not token.startswith(prefix))
        else:  # SentencePiece, whose space is U+2581
            lengths[index] = 1 if byte_fallback.fullmatch(token) else len(token.replace("\u2581", " ").encode())
    for added in spec.get("added_tokens", []):  # written as they are, e.g. GPT-NeoX's runs of spaces
        lengths[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return lengths
