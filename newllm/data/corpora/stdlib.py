"""The default corpus: the sources of Python's own standard library, on every machine that runs newllm."""

import hashlib
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from newllm.data.corpora.base import Data, Piece

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass
class Stdlib(Data):
    """Each .py file of the standard library is a document; its tests are left out."""

    def source(self) -> Iterator[Piece]:
        for file in _files():
            with tokenize.open(file) as stream:
                yield Piece(stream.read())

    def fingerprint(self) -> str:
        digest = hashlib.sha256(sys.version.encode())
        for file in _files():
            digest.update(f"{file.relative_to(_root())}\0{file.stat().st_size}\n".encode())
        return "stdlib:" + digest.hexdigest()


@cache  # asked for every file, and slow to answer
def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _files() -> list[Path]:
    found = []
    for folder, folders, names in os.walk(_root()):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-")]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda file: file.relative_to(_root()).as_posix())
