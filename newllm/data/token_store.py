"""The token store: tokens of a corpus on disk, memory-mapped, with the lengths of documents and checksums.

A store is a folder: <stream>.bin (uint16 or uint32 tokens), <stream>.documents.npy (int64 [2, documents]: tokens and
UTF-8 bytes of each), the tokenizer, and meta.json. Streams are `train` and `val`, or `all` before a split by rows.
<stream>.bytes.bin (uint32) has the bytes of text that each token stands for, of streams with validation text whose
tokenizer does not tell them.
"""

from array import array
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from newllm.data.tokenizer import Tokenizer
from newllm.store.intact import check_file, file_sha256, read_json, write_json

META = "meta.json"


@dataclass
class Stream:
    """tokens: memory-mapped [N]; document_tokens, document_bytes: int64 [documents] (the last may be cut short).

    token_bytes: UTF-8 bytes of text that each token stands for, memory-mapped [N]; None if `bytes_per_id` [ids] tells.
    """

    tokens: np.ndarray
    document_tokens: np.ndarray
    document_bytes: np.ndarray
    token_bytes: np.ndarray | None = None
    bytes_per_id: np.ndarray | None = None

    def bytes_at(self, places: np.ndarray) -> np.ndarray:
        """UTF-8 bytes of text that the tokens at these places stand for, int64 in the shape of `places`."""
        if self.token_bytes is not None:
            return self.token_bytes[places].astype(np.int64)
        assert self.bytes_per_id is not None
        return self.bytes_per_id[self.tokens[places]]

    def documents_at(self, places: np.ndarray) -> np.ndarray:
        """Numbers of the documents of the tokens at these places, int64 in the shape of `places`."""
        return np.searchsorted(self._document_ends, places, side="right")

    @cached_property
    def _document_ends(self) -> np.ndarray:
        return np.cumsum(self.document_tokens)


@dataclass
class Store:
    layout: str
    streams: dict[str, Stream]
    tokenizer: Tokenizer
    checksums: dict[str, str]
    losses: str  # how much of the text the tokenizer loses, as "loses text (…)"; "" if nothing


class StreamWriter:
    """Appends encoded documents to <name>.bin, up to `limit` tokens, and the bytes of each to <name>.bytes.bin if
    `token_bytes`."""

    def __init__(
        self, folder: Path, name: str, dtype: np.dtype, limit: int | None = None, token_bytes: bool = False
    ) -> None:
        self.path, self.dtype, self.limit = folder / f"{name}.bin", dtype, limit
        self.length = 0  # tokens written
        self.document_tokens = array("q")
        self.document_bytes = array("q")
        self._tokens = self._bytes = 0  # of the document being written
        self._unwritten = 0  # bytes of text that has no token; they count with the next one
        self._file = open(self.path, "wb")  # noqa: SIM115 - open until close()
        self.bytes_path = bytes_path(folder, name) if token_bytes else None
        self._bytes_file = open(self.bytes_path, "wb") if self.bytes_path else None  # noqa: SIM115

    @property
    def full(self) -> bool:
        return self.limit is not None and self.length >= self.limit

    def write(self, ids: np.ndarray, text_bytes: int, last: bool, token_bytes: np.ndarray | None = None) -> None:
        """Append to the current document, up to the limit; `last` ends the document.

        text_bytes: UTF-8 bytes of the encoded text. token_bytes: those that each id stands for.
        """
        if self._bytes_file is not None and token_bytes is not None:
            counts = token_bytes.astype(np.uint32)
            self._unwritten += text_bytes - int(counts.sum())
            if len(counts):
                counts[0] += self._unwritten
                self._unwritten = 0
            self._bytes_file.write(counts[: None if self.limit is None else self.limit - self.length].data)
        if self.limit is not None:
            ids = ids[: self.limit - self.length]
        self._file.write(ids.astype(self.dtype, copy=False).data)
        self.length += len(ids)
        self._tokens += len(ids)
        self._bytes += text_bytes
        if last:
            if self._tokens or not self.full:  # a document after the limit is not part of the store
                self.document_tokens.append(self._tokens)
                self.document_bytes.append(self._bytes)
            self._tokens = self._bytes = 0

    def close(self) -> None:
        if self._tokens:
            self.write(np.empty(0, self.dtype), 0, last=True)
        self._file.close()
        if self._bytes_file is not None:
            self._bytes_file.close()
        table = np.array([self.document_tokens, self.document_bytes], dtype=np.int64).reshape(2, -1)
        np.save(self.path.with_suffix(".documents.npy"), table)


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def bytes_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.bytes.bin"


def read_stream(folder: Path, name: str, dtype: np.dtype, bytes_per_id: np.ndarray | None = None) -> Stream:
    def mapped(path: Path, dtype: np.dtype) -> np.ndarray:
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)

    tokens, counts = mapped(folder / f"{name}.bin", dtype), bytes_path(folder, name)
    document_tokens, document_bytes = np.load(folder / f"{name}.documents.npy")
    token_bytes = mapped(counts, np.dtype(np.uint32)) if counts.exists() else None
    return Stream(tokens, document_tokens, document_bytes, token_bytes, bytes_per_id)


def write_meta(
    folder: Path, layout: str, names: list[str], dtype: np.dtype, made_from: dict[str, Any], losses: str
) -> None:
    """Write the last file of a store: its contents, and the hash of every other file."""
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    meta = {"layout": layout, "streams": names, "dtype": dtype.name, "made_from": made_from, "losses": losses}
    write_json(folder / META, {**meta, "files": files})


def open_store(folder: Path) -> Store:
    """The store in `folder`. Raises an exception if it differs from what was written."""
    meta = read_json(folder / META)
    if meta is None:
        raise ValueError(f"{META} is missing")
    for name, written in meta["files"].items():
        check_file(folder / name, written)
    tokenizer = Tokenizer.load(folder)
    streams = {
        name: read_stream(folder, name, np.dtype(meta["dtype"]), tokenizer.token_bytes) for name in meta["streams"]
    }
    return Store(meta["layout"], streams, tokenizer, meta["files"], meta["losses"])
