"""The auto tokenizer: byte-level BPE (GPT-2's splitting and byte alphabet) trained on the training side only."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from newllm.data.cache import key_of, say
from newllm.data.corpora.corpus import Corpus
from newllm.data.split import Layout, Survey, choose_validation, hash_order, leading, numbered, side_of
from newllm.data.tokenizer import Tokenizer, cached

RULE = 1  # raise whenever the same text would give a different tokenizer
EOT = "<|endoftext|>"


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` ids, including end-of-text."""
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


def auto_tokenizer(corpus: Corpus, layout: Layout, found: Survey | None, cache: Path) -> Tokenizer:
    """The tokenizer of this corpus, split and vocabulary, from the cache or trained into it.

    It does not depend on the training budget, unless that decides which text validates.
    found: the survey of a finite corpus; None for a corpus that is read only once.
    """
    limit = corpus.tokenizer_bytes
    if layout == "prefix":  # bytes certain to be training text, since a token is at least one byte
        if corpus.rows is not None and corpus.rows[0] is not None:
            limit = min(limit, corpus.rows[0] * corpus.seq_len)
        elif found is not None:
            limit = min(limit, int((1 - corpus.val_fraction) * found.sizes.sum()))
    key = key_of(
        rule=RULE,
        corpus=corpus.fingerprint(),
        vocab_size=corpus.vocab_size,
        layout=layout,
        bytes=limit,
        val_fraction=corpus.val_fraction,
        min_chars=corpus.min_chars,
        **({"val_documents": corpus.val_documents} if layout == "numbered" else {}),
    )

    def train() -> Tokenizer:
        texts = _training_text(corpus, layout, found, limit)
        first = next(texts, "")  # an unreadable corpus raises here, before the announcement
        say(f"training a byte-level BPE tokenizer of {corpus.vocab_size} ids")
        return train_bpe(chain([first], texts), corpus.vocab_size)

    return cached(cache, key, train)


def _training_text(corpus: Corpus, layout: Layout, found: Survey | None, limit: int) -> Iterator[str]:
    """Training text: about `limit` bytes in whole documents after a survey, else at most `limit`."""
    if layout == "document":
        assert found is not None
        order = hash_order(found, ~choose_validation(found, corpus.val_fraction))
        chosen = np.zeros(len(found.sizes), dtype=bool)
        chosen[leading(order, found.sizes, limit)] = True
        yield from (piece.text for number, piece in numbered(corpus) if chosen[number])
        return
    left = limit
    for number, piece in numbered(corpus):
        if side_of(corpus, layout, number, piece.text) == "val":
            continue
        content = piece.text.encode()[:left]
        yield content.decode("utf-8", "ignore")
        left -= len(content) + 1  # counts end-of-text as one byte, so that the bound on tokens includes it
        if left <= 0:
            return
