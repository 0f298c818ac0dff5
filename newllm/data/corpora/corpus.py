"""The base class of corpora: the options of the data node, and text in pieces."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from newllm.checks import MOST_WIDTH, above, within
from newllm.errors import ConfigError


class Piece(NamedTuple):
    """A document or, of a long one, a part of it. `last` ends the document."""

    text: str
    last: bool = True


@dataclass
class Corpus(ABC):
    """A corpus, how much of it is used, how it becomes tokens, and what validates.

    conf/data/shared/rows.yaml explains each option. Where validation text has a size of its own (val_documents,
    val_samples, documents, a validation split), samples and tokens count training rows alone.
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

    # True if a second pass costs a download: then the side of a document is decided when it is read.
    streamed: ClassVar[bool] = False

    @property
    def own_validation(self) -> bool:
        """True if the corpus has a separate validation text, which is used whole."""
        return False

    @abstractmethod
    def source(self) -> Iterator[Piece]:
        """The text in its own order, in bounded memory."""

    def validation_source(self) -> Iterator[Piece]:
        """The validation text, if the corpus has `own_validation`."""
        raise NotImplementedError

    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the content of the corpus, by a hash of it where that is cheaper than a download."""

    def notes(self) -> list[str]:
        """What the user should know about the text: what a folder leaves out."""
        return []

    def pieces(self, validation: bool = False) -> Iterator[Piece]:
        """`source` or `validation_source` without documents that are empty or shorter than min_chars."""
        first = True
        for piece in self.validation_source() if validation else self.source():
            if not (first and piece.last and len(piece.text) < max(1, self.min_chars)):
                yield piece
            first = piece.last

    @property
    def rows(self) -> tuple[int | None, int | None]:
        """Budget in rows of training and of validation; None takes all the text that there is."""
        total = self.tokens // self.seq_len if self.tokens is not None else self.samples
        if self.documents is not None:
            total = None
        if self.separate_validation:
            return total, self.val_samples
        if total is None:
            return None, None
        validation = int(self.val_fraction * total)
        return total - validation, validation

    @property
    def separate_validation(self) -> bool:
        """True if validation text has a size of its own, so that the budget counts training rows alone."""
        given = (self.documents, self.val_documents, self.val_samples)
        return self.own_validation or given != (None, None, None)

    @property
    def least_rows(self) -> int:
        """The smallest budget that gives each side a row."""
        return 1 if self.separate_validation else math.ceil(1 / self.val_fraction)

    def __post_init__(self) -> None:
        for name in ("samples", "tokens", "tokenizer_bytes", "documents", "val_samples"):
            value = getattr(self, name)
            if value is not None:  # the first two are root keys
                above(name if name in ("samples", "tokens") else f"data.{name}", value, 0, 100)
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"data.val_fraction must be between 0 and 1, not {self.val_fraction}; type 0.1")
        within("data.passkey", self.passkey, 0, 1, 0.1)
        within("seq_len", self.seq_len, 1, 10_000_000, 128)
        if self.tokenizer == "auto":  # 256 bytes and end-of-text
            within("data.vocab_size", self.vocab_size, 257, MOST_WIDTH, 2048)
        self._check_split()
        training, validation = self.rows
        if 0 in (training, validation):
            budget, smallest = f"samples={self.samples}", f"samples={self.least_rows}"
            if self.tokens is not None:
                budget, smallest = f"tokens={self.tokens}", f"tokens={self.least_rows * self.seq_len}"
            both = "" if validation is None else f" and {validation} validation"
            raise ConfigError(
                f"{budget} gives {training} training{both} rows, and "
                f"{'both sides need one' if both else 'one is needed'}; type {smallest} or more"
            )

    def _check_split(self) -> None:
        """Raises ConfigError if two options contradict each other about what trains or what validates."""
        if self.documents is not None and self.tokens is not None:
            raise ConfigError(
                f"data.documents={self.documents} and tokens={self.tokens} both set the size of the training text; "
                "leave one of the two out"
            )
        separating = ["data.val_hub_split"] if self.own_validation else []
        names = ("documents", "val_documents", "val_samples")
        separating += [f"data.{name}" for name in names if getattr(self, name) is not None]
        if separating and self.split != "document":
            raise ConfigError(
                f"data.split={self.split} takes validation rows out of the training text, and {separating[0]} keeps "
                "the two texts apart; leave one of the two out"
            )
        if self.streamed and separating == ["data.documents"]:
            raise ConfigError(
                f"data.documents={self.documents} does not say which text validates, and a streamed corpus is too "
                "large to be read whole for that; type data.val_samples=500, or 'data.val_documents=[FIRST,LAST]'"
            )
        if self.val_documents is None:
            if self.val_joint is not None:
                raise ConfigError(
                    "data.val_joint joins the documents of data.val_documents, which is not set; type for instance "
                    "data.val_documents=[1000,1019]"
                )
            return
        typed = f"data.val_documents=[{','.join(map(str, self.val_documents))}]"
        if len(self.val_documents) != 2 or not 0 <= self.val_documents[0] <= self.val_documents[1]:
            raise ConfigError(
                f"{typed} is not a range of documents; type the first and the last of them, counted from 0, as in "
                "data.val_documents=[1000,1019]"
            )
        if self.own_validation:
            raise ConfigError(f"{typed} and data.val_hub_split both name the validation text; leave one of the two out")
        (first, last), training = self.val_documents, self.documents
        if training is not None and training > first:
            fewer = f"data.documents={first} or less, or " if first else ""
            raise ConfigError(
                f"data.documents={training} trains on documents 0 to {training - 1}, and {typed} validates on document "
                f"{first}; type {fewer}'data.val_documents=[{training},{training + last - first}]'"
            )
