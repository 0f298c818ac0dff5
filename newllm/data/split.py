"""What trains, what validates, and how many tokens of each: decided by content or number of a document, never by the
run's seed."""

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from newllm.data.corpora.corpus import Corpus, Piece
from newllm.data.disk_cache import progress
from newllm.errors import ConfigError

# Layouts of a store.
#   document  two streams, each in the order of content hashes, after a survey of the whole corpus
#   stream    two streams in the corpus' order, the side chosen by content as the documents come
#   numbered  two streams in the corpus' order, the side chosen by the number of the document
#   prefix    one stream in the corpus' order; its beginning, or rows of it, trains
Layout = Literal["document", "stream", "numbered", "prefix"]


@dataclass
class Survey:
    """For each document of a corpus: 64 bits of the sha256 of its content, and its size in UTF-8 bytes.

    hashes: uint64 [documents]. sizes: int64 [documents].
    """

    hashes: np.ndarray
    sizes: np.ndarray


def survey(corpus: Corpus) -> Survey:
    """Read the whole corpus once."""
    hashes, sizes = array("Q"), array("q")
    digest, size, total = hashlib.sha256(), 0, 0
    with progress("reading the corpus", "bytes") as show:
        for piece in corpus.pieces():
            content = piece.text.encode()
            digest.update(content)
            size += len(content)
            total += len(content)
            show(total)
            if piece.last:
                hashes.append(int.from_bytes(digest.digest()[:8], "little"))
                sizes.append(size)
                digest, size = hashlib.sha256(), 0
    return Survey(np.frombuffer(hashes, dtype=np.uint64), np.frombuffer(sizes, dtype=np.int64))


def layout_of(corpus: Corpus, documents: Survey | None) -> Layout:
    """The layout of this corpus' store. documents: the survey, None for a corpus that is read only once."""
    if corpus.split != "document":
        return "prefix"
    if corpus.val_documents is not None:
        return "numbered"
    if documents is None or corpus.own_validation:
        return "stream"
    if len(np.unique(documents.hashes)) > 1:
        return "document"
    if corpus.separate_validation:
        name = "val_samples" if corpus.documents is None else "documents"
        raise ConfigError(
            f"data.{name} keeps training and validation text apart by document, and the corpus is a single document "
            f"(or copies of one); give several documents or leave data.{name} out"
        )
    return "prefix"


def choose_validation(documents: Survey, fraction: float) -> np.ndarray:
    """bool [documents]: in the order of hashes, documents validate until `fraction` of the bytes is reached.

    Equal documents are on the same side. A document that would raise validation above 1.5 times its share is skipped,
    so that no single huge file dominates it. Needs two distinct documents, of which at least one validates and at
    least one trains.
    """
    _, group_of = np.unique(documents.hashes, return_inverse=True)  # groups of equal documents, in the order of hashes
    sizes = np.bincount(group_of, weights=documents.sizes)
    target = fraction * sizes.sum()
    chosen = np.zeros(len(sizes), dtype=bool)
    total = 0.0
    for group in range(len(sizes) - 1):
        if total >= target:
            break
        if total + sizes[group] <= 1.5 * target:
            chosen[group] = True
            total += sizes[group]
    if not chosen.any():
        chosen[np.argmin(sizes)] = True
    return chosen[group_of]


def hash_order(documents: Survey, mask: np.ndarray) -> np.ndarray:
    """The documents of `mask` in the order of their hashes: any prefix is a fair sample of them."""
    numbers = np.flatnonzero(mask)
    return numbers[np.argsort(documents.hashes[numbers], kind="stable")]


def leading(order: np.ndarray, sizes: np.ndarray, budget: float) -> np.ndarray:
    """The first documents of `order` that together reach `budget` bytes."""
    return order[: int(np.searchsorted(np.cumsum(sizes[order]), budget)) + 1]


def numbered(corpus: Corpus) -> Iterator[tuple[int, Piece]]:
    """Each piece of the corpus with the number of its document, from 0."""
    number = 0
    for piece in corpus.pieces():
        yield number, piece
        number += piece.last


def side_of(corpus: Corpus, layout: Layout, number: int, text: str) -> str:
    """The stream (train, val, all) of a document, for the layouts that need no survey."""
    if layout == "prefix":
        return "all"
    if corpus.own_validation:
        return "train"
    if corpus.val_documents is not None:
        first, last = corpus.val_documents
        return "val" if first <= number <= last else "train"
    content = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return "val" if content < corpus.val_fraction * 2.0**64 else "train"


def budget_of(corpus: Corpus, layout: str) -> dict[str, int]:
    """Tokens needed per stream, including the one after the last row; a stream without a limit is left out."""
    train, val = (rows and rows * corpus.seq_len for rows in corpus.rows)
    if layout != "prefix":
        return {side: tokens + 1 for side, tokens in (("train", train), ("val", val)) if tokens is not None}
    return {} if train is None else {"all": train + (val or 0) + corpus.seq_len}


def check_lengths(corpus: Corpus, layout: str, lengths: Mapping[str, int]) -> None:
    """Raises ConfigError if a stream is shorter than its budget, or than one row."""
    budget = budget_of(corpus, layout)
    for side, length in lengths.items():
        needed = budget.get(side, corpus.seq_len + 1)
        if side == "all":  # one token after the last row is enough, although the budget takes a whole row
            needed = needed - corpus.seq_len + 1 if budget else corpus.least_rows * corpus.seq_len + 1
        if length >= needed:
            continue
        rows = 0  # of the budget, that the text is long enough for
        own_budget = side == "val" and corpus.val_samples is not None
        if side in budget:
            counted = corpus.rows[1:] if own_budget else corpus.rows[:1] if corpus.separate_validation else corpus.rows
            rows = int(sum(filter(None, counted)) * (length / needed))
        if rows < (1 if own_budget else corpus.least_rows):
            smaller = "a smaller seq_len"
        elif own_budget:
            smaller = f"data.val_samples={rows} or less"
        elif corpus.tokens is not None:
            smaller = f"tokens={rows * corpus.seq_len} or less"
        else:
            smaller = f"samples={rows} or less"
        if side in budget and length:
            whole = "data.val_samples=null" if own_budget else "samples=null tokens=null"
            smaller += f", or {whole} to use the whole corpus"
        where = {"train": "training ", "val": "validation ", "all": ""}[side]
        raise ConfigError(
            f"too little {where}text: {needed:,} tokens are needed, {length:,} were found; give more text or type "
            f"{smaller}"
        )


def check_documents(wanted: int, available: int) -> None:
    """Raises ConfigError if the corpus has fewer training documents than data.documents."""
    if available < wanted:
        fewer = f"type data.documents={available} or less, or " if available else ""
        raise ConfigError(
            f"data.documents={wanted} needs {wanted:,} training documents and the corpus has {available:,}; "
            f"{fewer}give more text"
        )
