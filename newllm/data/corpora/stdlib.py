"""The default corpus: the sources of Python's own standard library, on every machine that runs newllm."""

import hashlib
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from newllm.data.corpora.corpus import Corpus, Piece
from newllm.errors import ConfigError

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass
class Stdlib(Corpus):
    """Each .py file of the standard library is a document; its tests are left out.

    exclude: more files to leave out, as patterns of their paths below the library's folder. ``encodings/*`` are
        tables of character codes, an eighth of the text, so similar that one in training gives away another in
        validation.
    """

    exclude: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._files():
            raise ConfigError(
                f"data.exclude={self.exclude} leaves no file of the standard library; give other patterns"
            )

    def source(self) -> Iterator[Piece]:
        for file in self._files():
            with tokenize.open(file) as stream:
                yield Piece(stream.read())

    def fingerprint(self) -> str:
        digest = hashlib.sha256(sys.version.encode())
        for file in self._files():
            digest.update(f"{file.relative_to(_root())}\0{file.stat().st_size}\n".encode())
        return "stdlib:" + digest.hexdigest()

    def _files(self) -> list[Path]:
        return [
            file
            for file in _files()
            if not any(fnmatch(file.relative_to(_root()).as_posix(), pattern) for pattern in self.exclude)
        ]


@cache  # asked for every file, and slow to answer
def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


@cache
def _files() -> list[Path]:
    found = []
    for folder, folders, names in os.walk(_root()):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-")]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda file: file.relative_to(_root()).as_posix())
