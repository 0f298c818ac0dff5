"""Nodes and files of the corpora that the tests of newllm/data read."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from newllm.data import Dataset

Load = Callable[..., Dataset]
HUB = "newllm.data.corpora.hub.Hub"
TEXT_FILES = "newllm.data.corpora.text_files.TextFiles"
FACTS = {"_target_": "newllm.data.facts.ReversalFacts"}
SMALL = {"seq_len": 64, "vocab_size": 512, "tokenizer_bytes": 100_000, "samples": 200}  # options of every data node


def write_jsonl(path: Path, texts: Iterable[str], **other: Any) -> Path:
    """A document per line, with `other` keys."""
    path.write_text("".join(json.dumps({"text": text, **other}) + "\n" for text in texts))
    return path


def write_hub_folder(folder: Path, train: Iterable[str], validation: Iterable[str]) -> Path:
    """A data set in the hub's layout: one file for each split."""
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "validation.jsonl", validation)
    return folder
