"""What every corpus has in common: the options of the data node and the stream of text pieces."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from newllm.errors import ConfigError


class Piece(NamedTuple):
    """A stretch of a document; documents longer than memory likes come in several. `last` ends the document."""

    text: str
    last: bool = True


@dataclass
class Corpus(ABC):
    """Options of every corpus.

    seq_len: tokens in a row.
    samples: rows, training and validation together; null takes the whole corpus.
    tokens: the other way to give that budget; takes the place of samples when given (rows = tokens // seq_len).
    documents: the third way: so many documents train, the first of the corpus in its own order (of those that do not
        validate), whole; takes the place of samples.
    val_documents: [first, last], the documents that validate, by their number in the corpus from 0, both included;
        the others train, in the corpus' own order. null: val_fraction of the text validates, by split.
    val_joint: text that joins those documents into one, encoded as a whole; null: each is encoded by itself.
    val_samples: rows that validate, the first of the validation text, which then does not depend on how much trains;
        null: val_fraction of the budget, or all of a validation text that is given by itself.
        Wherever validation text is given by itself (val_documents, val_samples, documents), samples and tokens count
        training rows alone.
    tokenizer: auto (byte-level BPE trained on the training side), or the name or folder of a Hugging Face tokenizer.
    vocab_size: ids of the auto tokenizer.
    tokenizer_bytes: bytes of training text the auto tokenizer is trained on, at most.
    split: document (no document on both sides), contiguous (the last rows validate), chunks (rows permuted, then
        split, as published: both sides hold parts of the same documents).
    val_fraction: share of the rows (contiguous, chunks) or of the bytes (document) that validates.
    split_seed: of the permutation of split=chunks; never the run's seed, so all seeds share one validation set.
    eot: end-of-text after each document.
    min_chars: documents with fewer characters are skipped, and not numbered.
    passkey: share of the training rows that carry passkeys (`newllm.data.passkey.PasskeyRows`); never of the facts.
    """

    seq_len: int = 128
    samples: int | None = None
    tokens: int | None = None
    documents: int | None = None
    val_documents: list[int] | None = None
    val_joint: str | None = None
    val_samples: int | None = None
    tokenizer: str = "auto"
    vocab_size: int = 2048
    tokenizer_bytes: int = 32_000_000
    split: Literal["document", "contiguous", "chunks"] = "document"
    val_fraction: float = 0.1
    split_seed: int = 42
    eot: bool = True
    min_chars: int = 1
    passkey: float = 0.0

    def __post_init__(self) -> None:
        for name in ("seq_len", "samples", "tokens", "tokenizer_bytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be greater than 0, not {value}; type for instance {name}=128")
        self._check_documents()
        if self.split not in ("document", "contiguous", "chunks"):
            raise ConfigError(f"data.split must be document, contiguous or chunks, not {self.split!r}")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"data.val_fraction must be between 0 and 1, not {self.val_fraction}; type 0.1")
        if not 0 <= self.passkey <= 1:
            raise ConfigError(
                f"data.passkey is a share of the training rows, from 0 to 1, not {self.passkey:g}; "
                "type data.passkey=0.1"
            )
        if self.tokenizer == "auto" and self.vocab_size < 257:
            raise ConfigError(
                f"data.vocab_size must be at least 257 (256 bytes and end-of-text), not {self.vocab_size}; "
                "type data.vocab_size=2048"
            )
        if self.rows is not None and 0 in self.rows:
            validation = "" if self.rows[1] is None else f" and {self.rows[1]} validation"
            raise ConfigError(
                f"{self._budget} gives {self.rows[0]} training{validation} rows, "
                f"and {'both need' if validation else 'at least'} one{'' if validation else ' is needed'}; "
                f"type {self._least_budget} or more"
            )

    def _check_documents(self) -> None:
        """Raise ConfigError where two options say differently what trains or what validates."""
        for name in ("documents", "val_samples"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"data.{name} must be greater than 0, not {value}; type for instance data.{name}=50")
        if self.documents is not None and self.tokens is not None:
            raise ConfigError(
                f"data.documents={self.documents} and tokens={self.tokens} are two budgets of training text; "
                "leave one of the two out"
            )
        names = ("documents", "val_documents", "val_samples")
        given = [f"data.{name}" for name in names if getattr(self, name) is not None]
        given = ["data.val_hub_split"] * self.own_validation + given
        if given and self.split != "document":
            raise ConfigError(
                f"data.split={self.split} takes validation rows out of the training text, and {given[0]} keeps the "
                "two texts apart; leave one of the two out"
            )
        if self.streamed and self.documents is not None and given == ["data.documents"]:
            raise ConfigError(
                f"data.documents={self.documents} says nothing of what validates, and this corpus is too large to be "
                "read whole for it; type data.val_samples=500, or data.val_documents=[FIRST,LAST]"
            )
        if self.val_documents is None:
            if self.val_joint is not None:
                raise ConfigError(
                    "data.val_joint stands between the documents of data.val_documents, which is not given; type for "
                    "instance data.val_documents=[1000,1019]"
                )
            return
        if len(self.val_documents) != 2 or not 0 <= self.val_documents[0] <= self.val_documents[1]:
            raise ConfigError(
                f"data.val_documents={_typed(self.val_documents)} is no range of documents; type the first and the "
                "last of them, counted from 0, as in data.val_documents=[1000,1019]"
            )
        first, last = self.val_documents
        if self.own_validation:
            raise ConfigError(
                f"data.val_documents={_typed(self.val_documents)} and data.val_hub_split both name the text that "
                "validates; leave one of the two out"
            )
        if self.documents is not None and self.documents > first:
            fewer = f"data.documents={first} or less, or " if first else ""
            raise ConfigError(
                f"data.documents={self.documents} trains on documents 0 to {self.documents - 1}, and "
                f"data.val_documents={_typed(self.val_documents)} validates on document {first}; type {fewer}"
                f"data.val_documents=[{self.documents},{self.documents + last - first}]"
            )

    @property
    def rows(self) -> tuple[int | None, int | None] | None:
        """(training, validation) rows that are asked for, None for as many as there are; None for the whole corpus."""
        total = self.tokens // self.seq_len if self.tokens is not None else self.samples
        if self.documents is not None:
            total = None
        if not self.validates_apart:
            if total is None:
                return None
            validation = int(self.val_fraction * total)
            return total - validation, validation
        return None if total is self.val_samples is None else (total, self.val_samples)

    @property
    def validates_apart(self) -> bool:
        """True if the budget is of training rows, since what validates has a size of its own."""
        return self.own_validation or any(
            value is not None for value in (self.documents, self.val_documents, self.val_samples)
        )

    @property
    def least_rows(self) -> int:
        """Fewest rows that a budget may ask for: with them, each side has one."""
        return 1 if self.validates_apart else math.ceil(1 / self.val_fraction)

    @property
    def _budget(self) -> str:
        return f"tokens={self.tokens}" if self.tokens is not None else f"samples={self.samples}"

    @property
    def _least_budget(self) -> str:
        if self.tokens is not None:
            return f"tokens={self.least_rows * self.seq_len}"
        return f"samples={self.least_rows}"

    @property
    def streamed(self) -> bool:
        """True if a second pass over the corpus costs a download: then a document's side is decided as it comes."""
        return False

    @property
    def own_validation(self) -> bool:
        """True if the corpus has a text of its own that validates, all of it; the budget is then of training rows."""
        return False

    @abstractmethod
    def source(self) -> Iterator[Piece]:
        """The corpus, piece by piece, in its own order, with bounded memory."""

    def validation_source(self) -> Iterator[Piece]:
        """The text that validates, where `own_validation`."""
        raise NotImplementedError(f"{type(self).__name__} has no validation text of its own")

    @abstractmethod
    def fingerprint(self) -> str:
        """Names the corpus' content for the cache, without reading it."""

    def pieces(self) -> Iterator[Piece]:
        """`source` without the documents that are empty or shorter than min_chars."""
        return self._long_enough(self.source())

    def validation_pieces(self) -> Iterator[Piece]:
        """`validation_source` without them."""
        return self._long_enough(self.validation_source())

    def _long_enough(self, source: Iterator[Piece]) -> Iterator[Piece]:
        first = True
        for piece in source:
            if not (first and piece.last and len(piece.text) < max(1, self.min_chars)):
                yield piece
            first = piece.last


def _typed(numbers: list[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"
