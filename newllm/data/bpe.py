"""The auto tokenizer: byte-level BPE (GPT-2's splitting and byte alphabet) trained on the training side only."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from newllm.data.cache import key_of, say
from newllm.data.corpora.base import Data
from newllm.data.split import (
    Layout,
    Survey,
    choose_validation,
    hash_order,
    hash_validates,
    number_validates,
    numbered,
    picked,
    prefix,
)
from newllm.data.tokenizer import Tokenizer, cached

RULE = 1  # raise when the same text would give another tokenizer
EOT = "<|endoftext|>"


def auto_tokenizer(data: Data, layout: Layout, found: Survey | None, cache: Path) -> Tokenizer:
    """The cached tokenizer of this corpus, split and vocabulary, trained if need be.

    found: the survey of a finite corpus; None for one that is read once. How much of the training side trains the
    model makes no difference to it, unless what validates follows from that.
    """
    limit = data.tokenizer_bytes if layout != "prefix" else _prefix_bytes(data, found)
    by_number = {"val_documents": data.val_documents} if layout == "numbered" else {}
    key = key_of(
        rule=RULE,
        corpus=data.fingerprint(),
        vocab_size=data.vocab_size,
        layout=layout,
        bytes=limit,
        val_fraction=data.val_fraction,
        min_chars=data.min_chars,
        **by_number,
    )

    def train() -> Tokenizer:
        texts = _training_text(data, layout, found, limit)
        first = next(texts, "")  # a corpus that cannot be read says so, before anything is announced
        say(f"training a byte-level BPE tokenizer of {data.vocab_size} ids")
        return train_bpe(chain([first], texts), data.vocab_size)

    return cached(cache, key, train)


def _prefix_bytes(data: Data, found: Survey | None) -> int:
    """Bytes at the beginning of the stream that train, whatever the tokenizer: a token is at least one byte."""
    bound = data.tokenizer_bytes
    if data.rows is not None and data.rows[0] is not None:
        bound = min(bound, data.rows[0] * data.seq_len)
    elif found is not None:
        bound = min(bound, int((1 - data.val_fraction) * found.sizes.sum()))
    return bound


def _training_text(data: Data, layout: Layout, found: Survey | None, limit: int) -> Iterator[str]:
    if layout == "document":
        assert found is not None
        order = hash_order(found, ~choose_validation(found, data.val_fraction))
        chosen = np.zeros(len(found.sizes), dtype=bool)
        chosen[prefix(order, found.sizes, limit)] = True
        for _, piece in picked(data, chosen):
            yield piece.text
        return
    left = limit
    for number, piece in numbered(data.pieces()):
        if layout == "stream" and not data.own_validation and hash_validates(piece.text, data.val_fraction):
            continue
        if data.val_documents is not None and number_validates(number, data.val_documents):
            continue
        content = piece.text.encode()[:left]
        yield content.decode("utf-8", "ignore")
        left -= len(content) + 1  # end-of-text stands for no byte: counted as one, the bound holds for it too
        if left <= 0:
            return


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` ids, end-of-text among them."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, vocab_size, EOT)
