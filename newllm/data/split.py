"""Which text validates. A side is chosen by the hash of a document's content, never by the run's seed."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from newllm.data.corpora.base import Data, Piece
from newllm.data.progress import Progress

# How a store lays its text out: two streams, filled by a survey of the whole corpus (document) or as the documents
# come, a side chosen by content (stream) or by number (numbered); or one stream in the corpus' order (prefix: what
# trains is its beginning, or rows of it).
Layout = Literal["document", "stream", "numbered", "prefix"]


@dataclass
class Survey:
    """One pass over a finite corpus: of each document, the hash of its content and its bytes (UTF-8)."""

    hashes: np.ndarray  # uint64 [documents]
    sizes: np.ndarray  # int64 [documents]

    @property
    def distinct(self) -> int:
        return len(np.unique(self.hashes))


def content_hash(text: str) -> int:
    """64 bits of the content: equal documents get equal hashes."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def survey(data: Data) -> Survey:
    hashes, sizes = array("Q"), array("q")
    digest, size, total = hashlib.sha256(), 0, 0
    progress = Progress("reading the corpus", "bytes")
    for piece in data.pieces():
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


def choose_validation(found: Survey, fraction: float) -> np.ndarray:
    """bool [documents]: in the order of hashes, documents validate until `fraction` of the bytes is reached.

    Equal documents fall on one side. One that would bring validation above 1.5 times its share is passed over
    (a single huge file must not become most of it); at least one document validates, and never all: needs two
    distinct documents.
    """
    _, group_of = np.unique(found.hashes, return_inverse=True)  # groups of equal documents, in order of hash
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
    """Documents of one side in the order of their hashes: any leading part is a fair sample of the side."""
    documents = np.flatnonzero(mask)
    return documents[np.argsort(found.hashes[documents], kind="stable")]


def hash_validates(text: str, fraction: float) -> bool:
    """The side of a streamed document: validation if its hash is below `fraction` of the range."""
    return content_hash(text) < fraction * 2.0**64


def number_validates(number: int, chosen: Sequence[int]) -> bool:
    """The side of a document by its number: validation from the first to the last of `chosen`."""
    return chosen[0] <= number <= chosen[1]


def prefix(order: np.ndarray, sizes: np.ndarray, budget: float) -> np.ndarray:
    """The first documents of `order` that together reach `budget` bytes."""
    return order[: int(np.searchsorted(np.cumsum(sizes[order]), budget)) + 1]


def picked(data: Data, chosen: np.ndarray) -> Iterator[tuple[int, Piece]]:
    """(number, piece) of the documents marked in `chosen` (bool [documents]), in one pass in the corpus' order."""
    for number, piece in numbered(data.pieces()):
        if chosen[number]:
            yield number, piece


def numbered(pieces: Iterable[Piece]) -> Iterator[tuple[int, Piece]]:
    """Each piece with the number of its document, from 0."""
    number = 0
    for piece in pieces:
        yield number, piece
        number += piece.last
