"""The default corpus: the sources of Python's own standard library, on every machine that runs newllm."""

import hashlib
import os
import platform
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

ROOT = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass
class Stdlib(Corpus):
    """Each .py file of the standard library is a document; its tests are left out.

    exclude: more files to leave out, as patterns of their paths below the library's folder. ``encodings/*`` are
        tables of character codes, an eighth of the text, so similar that one in training gives away another in
        validation.
    python: the version of Python that runs, so that runs under another one, with another text, are other runs.
    """

    exclude: list[str] = field(default_factory=list)
    python: str = platform.python_version()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.python != platform.python_version():
            raise ConfigError(
                f"data.python={self.python}: this is Python {platform.python_version()}, whose standard library is "
                "another text; use that version, or leave data.python out"
            )
        if not self._files():
            raise ConfigError(
                f"data.exclude={self.exclude} excludes every file of the standard library; type other patterns"
            )

    def source(self) -> Iterator[Piece]:
        for name in self._files():
            with tokenize.open(ROOT / name) as stream:
                yield Piece(stream.read())

    def fingerprint(self) -> str:
        digest = hashlib.sha256(sys.version.encode())
        for name in self._files():
            digest.update(f"{name}\0{(ROOT / name).stat().st_size}\n".encode())
        return "stdlib:" + digest.hexdigest()

    def _files(self) -> list[str]:
        return [name for name in _files() if not any(fnmatch(name, pattern) for pattern in self.exclude)]


@cache
def _files() -> list[str]:
    """Paths below ROOT, sorted."""
    files: list[str] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-")]
        files += [Path(folder, name).relative_to(ROOT).as_posix() for name in names if name.endswith(".py")]
    return sorted(files)
