"""Small corpora of real text: modules of the standard library, laid out in every form that is read."""

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from newllm.data import Dataset, prepare

# fmt: off
MODULES = [
    "abc", "base64", "bisect", "calendar", "cmd", "code", "colorsys", "contextlib", "copy", "csv",
    "dis", "fnmatch", "fractions", "functools", "getopt", "gettext", "glob", "graphlib", "heapq",
    "hmac", "inspect", "io", "keyword", "linecache", "numbers", "queue", "random", "sched", "shlex",
    "statistics", "textwrap", "token",
]
# fmt: on
FACTS = {"_target_": "newllm.data.facts.ReversalFacts"}


def stdlib_text(name: str) -> str:
    return Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text("utf-8")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [stdlib_text(name) for name in MODULES]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A .jsonl file of 32 documents."""
    path = tmp_path_factory.mktemp("corpus") / "modules.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of one process share, so that each tokenizer is trained once."""
    return tmp_path_factory.mktemp("cache")


def node(path: Path | str | None = None, **options: Any) -> dict[str, Any]:
    """A data node of small proportions."""
    small = {"seq_len": 64, "vocab_size": 512, "tokenizer_bytes": 100_000, "samples": 200}
    return {"_target_": "newllm.data.corpora.text_files.TextFiles", "path": path and str(path), **small, **options}


@pytest.fixture
def load(corpus: Path, shared_cache: Path) -> Callable[..., Dataset]:
    """prepare() of the corpus (or `path=`) with the given options."""

    def call(facts: dict[str, Any] | None = None, seed: int = 1, cache: Path = shared_cache, **options: Any) -> Dataset:
        options.setdefault("_target_", "newllm.data.corpora.text_files.TextFiles")
        data = node(options.pop("path", corpus), **options)
        if not data["_target_"].endswith("TextFiles"):
            del data["path"]
        return prepare(data, facts, seed=seed, runtime={"cache_dir": str(cache)})

    return call
