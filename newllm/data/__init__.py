"""Corpora, tokenizers, token store, splits and reversal facts: everything between text and batches.

`prepare` turns a data node and a facts node into a `Dataset`; nothing here imports torch before the first batch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from newllm.data.dataset import Dataset, Rows, prepare
    from newllm.data.tokenizer import Tokenizer, vocab_size

__all__ = ["Dataset", "Rows", "Tokenizer", "prepare", "vocab_size"]

_HOMES = {
    "Dataset": "newllm.data.dataset",
    "Rows": "newllm.data.dataset",
    "prepare": "newllm.data.dataset",
    "Tokenizer": "newllm.data.tokenizer",
    "vocab_size": "newllm.data.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
