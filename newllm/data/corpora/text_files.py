"""The user's own text: .txt, .jsonl, .jsonl.gz and .parquet files, or folders of them."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from newllm.config.content import Found, content_hash, find
from newllm.config.groups import group_of
from newllm.data.corpora.corpus import Corpus, Piece
from newllm.errors import ConfigError

PATTERNS = group_of("data").paths["path"]
PIECE_CHARS = 1 << 20  # size of the pieces in which a .txt file is read; other documents of twice that size are cut too
FILES = ".txt, .jsonl, .jsonl.gz or .parquet files"
ACCEPTED = f"{FILES}, or a folder of them"


@dataclass
class TextFiles(Corpus):
    """Documents: a .txt file is one, a line of .jsonl is one, a row of .parquet is one.

    path: file or folder (searched recursively, in the order of names).
    text_key: key of the text in .jsonl lines, name of its column in .parquet.
    """

    path: str | None = None
    text_key: str = "text"

    def source(self) -> Iterator[Piece]:
        for kind, file in self._found().files:
            read = {"*.txt": _plain, "*.parquet": self._parquet}.get(kind, self._lines)
            try:
                yield from read(file)
            except (ValueError, OSError, EOFError, zlib.error) as error:
                raise ConfigError(
                    f"{file} cannot be read as text ({error}); data.path must name {ACCEPTED}, in UTF-8"
                ) from None

    def fingerprint(self) -> str:
        self._found()  # raises ConfigError for a wrong path
        return f"text:{self.text_key}:{content_hash(str(self.path), PATTERNS)}"

    def notes(self) -> list[str]:
        left_out = self._found().sentence()
        return [f"data.path={self.path}: {left_out}"] if left_out else []

    def _found(self) -> Found:
        """The text files at data.path, and what else is there."""
        if not self.path:
            raise ConfigError("data.path is not set; type data.path=FILE_OR_FOLDER, your own text")
        path = Path(self.path).expanduser()
        found = find(path, PATTERNS)
        if found.files:
            if not any(file.stat().st_size for _, file in found.files):
                raise ConfigError(f"data.path={self.path} is empty; it must name {ACCEPTED}, with text in them")
            return found
        if os.path.isdir(path):
            left_out = f" ({found.sentence()})" if found.left_out else ""
            raise ConfigError(f"data.path={self.path} holds no {FILES}{left_out}")
        wrong = "is a file of another kind" if os.path.exists(path) else "does not exist"
        raise ConfigError(f"data.path={self.path} {wrong}; it must name {ACCEPTED}")

    def _lines(self, file: Path) -> Iterator[Piece]:
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:  # JSONDecodeError; too long numbers; too deep lists
                    raise ConfigError(
                        f"{where}: not valid JSON ({error}); "
                        f'each line must be an object like {{"{self.text_key}": "..."}}'
                    ) from None
                text = record.get(self.text_key) if isinstance(record, dict) else None
                if isinstance(record, dict) and self.text_key in record and not isinstance(text, str):
                    kind = "null" if text is None else f"of type {type(text).__name__}"
                    raise ConfigError(
                        f"{where}: the value of {self.text_key!r} is {kind}, no text; correct the file, or type "
                        "data.text_key=KEY"
                    )
                if not isinstance(text, str):
                    keys = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
                    raise ConfigError(
                        f"{where}: no text under the key {self.text_key!r} (found: {keys}); type data.text_key=KEY"
                    )
                # Lone surrogates become question marks.
                yield from _cut(text if text.isascii() else text.encode("utf-8", "replace").decode())

    def _parquet(self, file: Path) -> Iterator[Piece]:
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.ParquetFile(file)
            if self.text_key not in table.schema_arrow.names:
                raise ConfigError(
                    f"{file} has no column {self.text_key!r} (found: {', '.join(table.schema_arrow.names)}); "
                    "type data.text_key=COLUMN"
                )
            for batch in table.iter_batches(batch_size=256, columns=[self.text_key]):
                for text in batch.column(0).to_pylist():
                    if isinstance(text, str):
                        yield from _cut(text)
                    elif text is not None:
                        raise ConfigError(f"{file}: column {self.text_key!r} holds no text; type data.text_key=COLUMN")
        except pyarrow.ArrowException as error:
            raise ValueError(error) from None


def _cut(text: str) -> Iterator[Piece]:
    """A document in pieces of bounded size, which begin at a space, as tokens do."""
    start = 0
    while len(text) - start > 2 * PIECE_CHARS:
        end = text.rfind(" ", start + 1, start + PIECE_CHARS)
        end = start + PIECE_CHARS if end < 0 else end
        yield Piece(text[start:end], last=False)
        start = end
    yield Piece(text[start:] if start else text)


def _plain(file: Path) -> Iterator[Piece]:
    with open(file, encoding="utf-8-sig", newline="") as stream:
        text = _next_piece(stream)
        while text:
            if "\0" in text:
                raise ValueError("it contains NUL bytes")
            following = _next_piece(stream)
            yield Piece(text, last=not following)
            text = following


def _next_piece(stream: IO[str]) -> str:
    """About PIECE_CHARS characters, up to the end of a line, so that no word is cut in two."""
    text = stream.read(PIECE_CHARS)
    return text + stream.readline(PIECE_CHARS) if len(text) == PIECE_CHARS else text
