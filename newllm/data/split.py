"""Splits text into training and validation, by content or number of a document, never by the run's seed."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from newllm.data.cache import Progress
from newllm.data.corpora.corpus import Corpus, Piece
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
    progress = Progress("reading the corpus", "bytes")
    for piece in corpus.pieces():
        content = piece.text.encode()
        digest.update(content)
        size += len(content)
        total += len(content)
        progress.show(total)
        if piece.last:
            hashes.append(int.from_bytes(digest.digest()[:8], "little"))
            sizes.append(size)
            digest, size = hashlib.sha256(), 0
    progress.end()
    return Survey(np.frombuffer(hashes, dtype=np.uint64), np.frombuffer(sizes, dtype=np.int64))


def layout_of(corpus: Corpus, found: Survey | None) -> Layout:
    """The layout of this corpus' store. found: the survey, if the corpus is read twice."""
    if corpus.split != "document":
        return "prefix"
    if corpus.val_documents is not None:
        return "numbered"
    if found is None or corpus.own_validation:
        return "stream"
    if len(np.unique(found.hashes)) > 1:
        return "document"
    if corpus.separate_validation:
        name = "val_samples" if corpus.documents is None else "documents"
        raise ConfigError(
            f"data.{name} keeps training and validation text apart by document, and the corpus is a single document "
            f"(or copies of one); give several documents or leave data.{name} out"
        )
    return "prefix"


def choose_validation(found: Survey, fraction: float) -> np.ndarray:
    """bool [documents]: in the order of hashes, documents validate until `fraction` of the bytes is reached.

    Equal documents are on the same side. A document that would raise validation above 1.5 times its share is skipped,
    so that no single huge file dominates it. Needs two distinct documents, of which at least one validates and at
    least one trains.
    """
    _, group_of = np.unique(found.hashes, return_inverse=True)  # groups of equal documents, in the order of hashes
    sizes = np.bincount(group_of, weights=found.sizes)
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


def hash_order(found: Survey, mask: np.ndarray) -> np.ndarray:
    """The documents of `mask` in the order of their hashes: any prefix is a fair sample of them."""
    documents = np.flatnonzero(mask)
    return documents[np.argsort(found.hashes[documents], kind="stable")]


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
