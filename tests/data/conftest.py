"""Small corpora of real text: modules of the standard library, laid out in every form that is read."""

import sysconfig
from pathlib import Path
from typing import Any

import pytest

from newllm.data import Dataset, prepare
from tests.support.corpora import SMALL, TEXT_FILES, Load, write_hub_folder, write_jsonl

# fmt: off
MODULES = [
    "abc", "base64", "bisect", "calendar", "cmd", "code", "colorsys", "contextlib", "copy", "csv",
    "dis", "fnmatch", "fractions", "functools", "getopt", "gettext", "glob", "graphlib", "heapq",
    "hmac", "inspect", "io", "keyword", "linecache", "numbers", "queue", "random", "sched", "shlex",
    "statistics", "textwrap", "token",
]
# fmt: on


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text("utf-8") for name in MODULES]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A .jsonl file of 32 documents."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "modules.jsonl", texts)


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> str:
    """A data set in the hub's layout: twenty documents train, twelve others validate."""
    return str(write_hub_folder(tmp_path_factory.mktemp("hub"), texts[:20], texts[20:]))


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of one process share, so that each tokenizer is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def load(corpus: Path, shared_cache: Path) -> Load:
    """prepare() with small sizes and these options, of text files (the corpus, or `path`) if no `_target_` is given."""

    def call(facts: dict[str, Any] | None = None, seed: int = 1, cache: Path = shared_cache, **options: Any) -> Dataset:
        node = {**SMALL, **options}
        if "_target_" not in options:
            path = options.get("path", corpus)
            node |= {"_target_": TEXT_FILES, "path": path and str(path)}
        return prepare(node, facts, seed=seed, runtime={"cache_dir": str(cache)})

    return call
