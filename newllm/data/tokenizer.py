"""Tokenizers at run time: the `tokenizers` package and a tokenizer.json, whatever they came from."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from newllm.config.fingerprint import path_fingerprint
from newllm.data.cache import build_folder, cache_folder, key_of, locked

if TYPE_CHECKING:
    import tokenizers

FILE = "tokenizer.json"
ABOUT = "tokenizer.meta.json"


class Tokenizer:
    """Text to ids and back, without special tokens around it; end-of-text in a text is encoded as plain text.

    vocab_size: ids a model must know (the auto tokenizer's configured size, even if its text gave fewer).
    eot_id: end-of-text, or None.
    spec: the tokenizer.json, without its vocabulary.
    token_bytes: int64 [vocab_size], bytes of UTF-8 text each id stands for; 0 for end-of-text and special ids.
        Their sum over an encoded text is the length of the text, exactly, for byte-level BPE
        (of the normalised text, where the tokenizer normalises).
    """

    def __init__(self, backend: "tokenizers.Tokenizer", vocab_size: int, eot: str | None) -> None:
        self.backend = backend
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()
        self.vocab_size = vocab_size
        self.eot = eot
        self.eot_id: int | None = backend.token_to_id(eot) if eot is not None else None
        self.spec: dict[str, Any] = json.loads(backend.to_str())
        self.token_bytes: np.ndarray = _token_bytes(self.spec, backend.get_vocab(), vocab_size)
        for table in ("vocab", "merges"):
            self.spec["model"].pop(table, None)

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        self.backend.save(str(folder / FILE))
        (folder / ABOUT).write_text(json.dumps({"vocab_size": self.vocab_size, "eot": self.eot}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        import tokenizers

        about = json.loads((folder / ABOUT).read_text())
        return cls(tokenizers.Tokenizer.from_file(str(folder / FILE)), about["vocab_size"], about["eot"])


def identity(name: str) -> str:
    """Names a Hugging Face tokenizer for the cache: its name, or the files of its folder."""
    folder = Path(name).expanduser()
    return f"folder:{path_fingerprint(folder, with_times=True)}" if folder.is_dir() else f"hub:{name}"


def pretrained(name: str, cache: Path) -> Tokenizer:
    """The Hugging Face tokenizer `name` (or folder), kept in the cache so that transformers reads it only once.

    The folder tokenizer/ of a run is taken as it is.
    """
    folder = Path(name).expanduser()
    if (folder / ABOUT).is_file():
        return Tokenizer.load(folder)
    from newllm.data.hub_tokenizer import load_with_transformers  # imports transformers only when called

    return cached(cache, key_of(rule=1, tokenizer=identity(name)), lambda: load_with_transformers(name))


def cached(cache: Path, key: str, make: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer kept under `key`, made by one process at a time when it is absent or damaged."""
    folder = cache / "tokenizers" / key
    if tokenizer := _load_whole(folder):
        return tokenizer
    with locked(folder, "tokenizer"):
        tokenizer = _load_whole(folder)  # another process may have made it meanwhile
        if tokenizer is None:
            tokenizer = make()
            build_folder(folder, tokenizer.save)
        return tokenizer


def _load_whole(folder: Path) -> Tokenizer | None:
    try:
        return Tokenizer.load(folder)
    except Exception:  # `tokenizers` raises bare Exception for a broken file
        return None


def vocab_size(data_node: Mapping[str, Any], runtime: Any = None) -> int:
    """Ids the data node's tokenizer has, known before any text is read."""
    if data_node["tokenizer"] == "auto":
        return int(data_node["vocab_size"])
    return pretrained(data_node["tokenizer"], cache_folder(runtime)).vocab_size


def _token_bytes(spec: dict[str, Any], vocab: Mapping[str, int], size: int) -> np.ndarray:
    lengths = np.zeros(size, dtype=np.int64)
    length = _length_rule(spec)
    for token, index in vocab.items():
        lengths[index] = length(token)
    for added in spec.get("added_tokens", []):  # written as they are, e.g. GPT-NeoX's runs of spaces
        lengths[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return lengths


def _length_rule(spec: dict[str, Any]) -> Any:
    if _has(spec, "ByteLevel"):
        return len  # one character of the GPT-2 byte alphabet for each byte
    prefix = (spec.get("model") or {}).get("continuing_subword_prefix")
    if prefix:  # WordPiece: a word stands after a space, a continuation does not
        return lambda token: len(token.removeprefix(prefix).encode()) + (not token.startswith(prefix))
    byte = re.compile(r"<0x[0-9A-F]{2}>")  # SentencePiece's byte fallback; U+2581 is its space
    return lambda token: 1 if byte.fullmatch(token) else len(token.replace("\u2581", " ").encode())


def _has(spec: dict[str, Any], kind: str) -> bool:
    """Does the decoder or pre-tokenizer, alone or in a sequence, contain a step of this kind?"""
    steps = [spec.get("decoder") or {}, spec.get("pre_tokenizer") or {}]
    while steps:
        step = steps.pop()
        if step.get("type") == kind:
            return True
        steps += step.get("decoders", []) + step.get("pretokenizers", [])
    return False
