"""Rows of tokens for training and validation, ready to be gathered into batches."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from omegaconf import DictConfig

from newllm.build import build
from newllm.data.build_store import store_of
from newllm.data.corpora.corpus import Corpus
from newllm.data.disk_cache import cache_folder
from newllm.data.facts import IGNORED, ReversalFacts
from newllm.data.passkey_rows import PasskeyRows
from newllm.data.split import check_lengths
from newllm.data.token_store import Store, Stream
from newllm.data.tokenizer import Tokenizer
from newllm.errors import ConfigError
from newllm.seeding import stream

if TYPE_CHECKING:
    import torch


class Rows:
    """Rows of seq_len tokens from a memory-mapped stream, followed by rows held in memory (the facts).

    starts: int64 [stream rows], first token of each row; labels are the inputs shifted by one token.
    inputs, labels: int64 [rows in memory, seq_len].
    text: all tokens of this side as one run [N], including the rest that fills no row; None if the rows are scattered.
    passkeys: writes passkeys into some rows of the stream; None if there are none.
    text_start: place in `source` of the first token of `text`. source: the stream of the store that `tokens` are of.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        seq_len: int,
        inputs: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        text: np.ndarray | None = None,
        text_start: int = 0,
        source: Stream | None = None,
    ) -> None:
        no_rows = np.empty((0, seq_len), dtype=np.int64)
        self.tokens, self.starts, self.seq_len, self.text = tokens, starts, seq_len, text
        self.inputs = no_rows if inputs is None else inputs
        self.labels = no_rows if labels is None else labels
        self.passkeys: PasskeyRows | None = None
        self.text_start, self.source = text_start, source

    def __len__(self) -> int:
        return len(self.starts) + len(self.inputs)

    @property
    def scored(self) -> int:
        """Number of labels scored in one pass over the rows."""
        return len(self.starts) * self.seq_len + int((self.labels != IGNORED).sum())

    def text_bytes(self, places: np.ndarray) -> np.ndarray:
        """UTF-8 bytes of text that the tokens at these places of `text` stand for, int64 in the shape of `places`."""
        assert self.source is not None
        return self.source.bytes_at(places + self.text_start)

    def documents_at(self, places: np.ndarray) -> np.ndarray:
        """Numbers of the documents of the tokens at these places of `text`, int64 in the shape of `places`."""
        assert self.source is not None
        return self.source.documents_at(places + self.text_start)

    def arrays(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels, int64 [B, T], of the rows `indices` [B]. Labels of -100 are not scored."""
        indices = np.asarray(indices, dtype=np.int64)
        inputs = np.empty((len(indices), self.seq_len), dtype=np.int64)
        labels = np.empty_like(inputs)
        streamed = indices < len(self.starts)
        window = self.tokens[self.starts[indices[streamed], None] + np.arange(self.seq_len + 1)]  # (B, T + 1)
        if self.passkeys is not None:
            self.passkeys.write(window, indices[streamed])
        inputs[streamed], labels[streamed] = window[:, :-1], window[:, 1:]
        others = indices[~streamed] - len(self.starts)
        inputs[~streamed], labels[~streamed] = self.inputs[others], self.labels[others]
        return inputs, labels

    def joined(self, max_labels: int | None = None) -> "Rows":
        """Consecutive rows as a single row of at most `max_labels` labels; other kinds of rows return themselves."""
        return self

    def batch(self, indices: np.ndarray) -> "tuple[torch.Tensor, torch.Tensor]":
        """`arrays` as tensors."""
        import torch

        inputs, labels = self.arrays(indices)
        return torch.from_numpy(inputs), torch.from_numpy(labels)


@dataclass
class Dataset:
    """Training and validation data of a run.

    counts: metric name -> number (data/train_tokens: labels scored in one epoch, including facts).
    notes: lines for the user, e.g. that the published split leaks.
    fingerprint: equal fingerprints mean equal rows in equal order, so the same seed gives the same batches.
    val_bytes: UTF-8 bytes of the text that the scored validation labels stand for.
    tokenizer_notes: what the user should know about the tokenizer, such as "loses text (…)".
    """

    train: Rows
    val: Rows
    tokenizer: Tokenizer
    facts: ReversalFacts | None
    counts: dict[str, float]
    fingerprint: str
    val_bytes: int
    notes: list[str] = field(default_factory=list)
    tokenizer_notes: list[str] = field(default_factory=list)

    @property
    def val_tokens(self) -> np.ndarray:
        """The validation text as one run of ids [N]: the inputs of all rows in order and the last label.

        Raises ConfigError like `stream`.
        """
        return self.stream("val")[: len(self.val.starts) * self.val.seq_len + 1]

    def stream(self, side: Literal["train", "val"]) -> np.ndarray:
        """All tokens of a side as one run of ids [N], in the order of the documents, without facts and passkeys.

        Memory-mapped, in the store's dtype. A budget in rows ends with the last label.
        Raises ConfigError if the split scatters the side.
        """
        text = (self.train if side == "train" else self.val).text
        if text is None:
            raise ConfigError(
                "data.split=chunks scatters the text, and this model or evaluation reads it as one stream; "
                "type data.split=contiguous or data.split=document"
            )
        return text

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Permutation of the training rows. Depends only on seed and epoch, so a run can resume anywhere."""
        generator = np.random.Generator(np.random.PCG64(stream(seed, "order", epoch)))
        return generator.permutation(len(self.train))


def prepare(
    data_node: Mapping[str, Any] | DictConfig,
    facts_node: Mapping[str, Any] | DictConfig | None,
    *,
    seed: int,
    runtime: Any = None,
) -> Dataset:
    """The data set of a data node and a facts node (None: no facts), from the cache or built into it.

    seed: of the order of facts in their packed rows; the split does not depend on it.
    """
    corpus = build(data_node, Corpus)
    facts = build(facts_node, ReversalFacts) if facts_node and facts_node.get("_target_") else None
    store, notes = store_of(corpus, cache_folder(runtime))
    train, val, leak, split_notes = split_rows(corpus, store)
    notes += [*corpus.notes(), *split_notes]
    if facts is not None:
        train.inputs, train.labels, fact_notes = facts.rows(store.tokenizer, corpus.seq_len, seed)
        notes += fact_notes
    if corpus.passkey:
        train.passkeys = PasskeyRows(corpus.passkey, len(train.starts), corpus.seq_len, store.tokenizer)

    documents = sum(len(stream.document_tokens) for stream in store.streams.values())
    if corpus.val_joint is not None and corpus.val_documents is not None:  # joined into one document in the store
        documents += corpus.val_documents[1] - corpus.val_documents[0]
    # Bytes of the validation labels, summed in chunks to bound memory.
    assert val.source is not None
    chunks = np.array_split(val.starts, len(val) * corpus.seq_len // 1_000_000 + 1)
    labels = np.arange(1, corpus.seq_len + 1)
    val_bytes = sum(int(val.source.bytes_at(starts[:, None] + labels).sum()) for starts in chunks)
    counts = {
        "data/train_tokens": train.scored,
        "data/val_tokens": val.scored,
        "data/train_rows": len(train),
        "data/val_rows": len(val),
        "data/fact_rows": len(train.inputs),
        "data/passkey_rows": 0 if train.passkeys is None else len(train.passkeys),
        "data/documents": documents,
        "data/val_documents_in_train_share": leak,
        "data/bytes_per_token": val_bytes / (len(val) * corpus.seq_len),
    }
    rows = None if corpus.rows == (None, None) else corpus.rows
    split = [corpus.split, corpus.split_seed, corpus.val_fraction, corpus.seq_len, rows]
    split += [corpus.passkey] if corpus.passkey else []
    fingerprint = hashlib.sha256(json.dumps([sorted(store.checksums.items()), split]).encode())
    fingerprint.update(train.inputs.tobytes())
    fingerprint.update(train.labels.tobytes())
    about = [*filter(None, [store.losses]), *store.tokenizer.traits]
    return Dataset(train, val, store.tokenizer, facts, counts, fingerprint.hexdigest(), val_bytes, notes, about)


def split_rows(corpus: Corpus, store: Store) -> tuple[Rows, Rows, float, list[str]]:
    """Training rows, validation rows, share of validation documents also trained on, notes for the user."""
    length = corpus.seq_len
    check_lengths(corpus, store.layout, {name: len(stream.tokens) for name, stream in store.streams.items()})
    if store.layout != "prefix":
        sides = []
        for side, budget in zip(("train", "val"), corpus.rows, strict=True):
            stream = store.streams[side]
            count = (len(stream.tokens) - 1) // length if budget is None else budget
            starts = np.arange(count) * length
            sides.append(Rows(stream.tokens, starts, length, text=stream.tokens, source=stream))
        return sides[0], sides[1], 0.0, []
    whole = store.streams["all"]
    training, validation = corpus.rows
    if training is None or validation is None:
        total = (len(whole.tokens) - 1) // length
        training = total - int(corpus.val_fraction * total)
    else:
        total = training + validation
    rows = np.arange(total)
    if corpus.split == "chunks":  # torch's permutation: seed 42 gives the published split
        import torch

        rows = torch.randperm(total, generator=torch.Generator().manual_seed(corpus.split_seed)).numpy()
    starts = rows.astype(np.int64) * length
    train, val = (Rows(whole.tokens, part, length, source=whole) for part in (starts[:training], starts[training:]))
    leak = _shared_documents(whole.document_tokens, train.starts, val.starts, length)
    if corpus.split == "chunks":
        note = (
            f"data.split=chunks (as published) leaks: {leak:.0%} of the validation documents are also trained on, so "
            "perplexity is too low; data.split=document keeps them apart"
        )
        return train, val, leak, [note]
    train.text = whole.tokens[: training * length + 1]
    val.text, val.text_start = whole.tokens[training * length : total * length + 1], training * length
    if corpus.split == "contiguous":
        return train, val, leak, []
    note = (
        "the corpus is a single document (or copies of one), which cannot be split by document: its last "
        f"{corpus.val_fraction:.0%} of rows validate (data.split=contiguous)"
    )
    return train, val, leak, [note]


def _shared_documents(document_tokens: np.ndarray, train: np.ndarray, val: np.ndarray, length: int) -> float:
    """Share of the documents with a token in a validation row that also have one in a training row."""
    ends = np.cumsum(document_tokens)

    def touched(starts: np.ndarray) -> np.ndarray:
        marks = np.zeros(len(ends) + 1, dtype=np.int64)  # +1 at the first document of a row, -1 after the last
        np.add.at(marks, np.searchsorted(ends, starts, side="right"), 1)
        np.add.at(marks, np.searchsorted(ends, starts + length - 1, side="right") + 1, -1)
        return np.cumsum(marks)[: len(ends)] > 0

    in_val = touched(val)
    return float((in_val & touched(train)).sum() / max(1, in_val.sum()))
