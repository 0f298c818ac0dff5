"""Contexts of a text: computed by passes of a recurrence, stored in memory-mapped files, read as rows in training.

A file holds the numbers [N, L, C] in row-major order, in fp32, or in bf16 if the run computes in bf16. That loses
nothing: contexts are only read by matrix products, which would round them anyway.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from newllm.data.dataset import Dataset, Rows
from newllm.data.facts import IGNORED
from newllm.data.token_store import Stream
from newllm.model.language_model import LanguageModel
from newllm.precision import DTYPES, Precision, autocast
from newllm.store.atomic import replacing
from newllm.store.intact import Damaged
from newllm.two_phase.recurrence import Piece, Recurrence, sequential


class Text:
    """The inputs of a model's recurrence on the text `tokens` [N]: text(start, stop) -> [stop - start, I]."""

    def __init__(self, model: Any, tokens: np.ndarray, device: torch.device) -> None:
        self.model, self.tokens, self.device = model, tokens, device
        self._before = int(getattr(model, "num_input_tokens", 1)) - 1  # earlier tokens that an input contains

    def __len__(self) -> int:
        return len(self.tokens)

    @torch.no_grad()
    def __call__(self, start: int, stop: int) -> Tensor:
        first = max(0, start - self._before)
        ids = torch.from_numpy(self.tokens[first:stop].astype(np.int64)).to(self.device)
        inputs: Tensor = self.model.recurrent_inputs(ids)
        return inputs[start - first :]

    def pieces(self, size: int) -> list[tuple[int, int]]:
        """(start, stop) of consecutive pieces of `size` tokens; the last one may be shorter."""
        return [(start, min(start + size, len(self))) for start in range(0, len(self), size)]


def previous_contexts(contexts: np.ndarray, start: int, stop: int, first: np.ndarray) -> np.ndarray:
    """The predecessors' contexts [stop - start, C], which the tokens start … stop-1 read, from all `contexts` [N, C].

    first: the context [C] that the first token of the text reads.
    """
    if start:
        return np.array(contexts[start - 1 : stop - 1])
    return np.concatenate([first[None], contexts[: stop - 1]])


def parallel_contexts(
    recurrence: Recurrence, text: Text, contexts: np.ndarray, size: int, precision: Precision
) -> Iterator[Piece]:
    """New contexts of all layers, `size` tokens at a time, from the predecessors' ones in `contexts` [N, C] (zeros for
    the first token)."""
    zeros = np.zeros(contexts.shape[1], np.float32)
    for start, stop in text.pieces(size):
        context = torch.from_numpy(previous_contexts(contexts, start, stop, zeros)).to(text.device)
        with torch.no_grad(), autocast(text.device, precision):
            states = recurrence(context, text(start, stop))
        yield (start, stop), states


def true_contexts(recurrence: Recurrence, text: Text, precision: Precision) -> Iterator[Piece]:
    """Contexts of all layers by the true recurrence from zeros, in the pieces of `sequential`."""
    pieces = sequential(recurrence, text, len(text), torch.zeros(recurrence.width, device=text.device))
    while True:
        with autocast(text.device, precision):  # not around the yield, where it would affect the caller
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def true_contexts_in_memory(model: Any, tokens: np.ndarray, device: torch.device, precision: Precision) -> Tensor:
    """The true contexts [N, L, C] of tokens [N], equal to stored ones to the bit."""
    shape = (len(tokens), model.recurrence.layers, model.recurrence.width)
    contexts = torch.empty(shape, dtype=DTYPES[precision])
    for (start, stop), piece in true_contexts(model.recurrence, Text(model, tokens, device), precision):
        contexts[start:stop] = piece
    return contexts


def write_contexts(path: Path, shape: tuple[int, int, int], pieces: Iterable[Piece], precision: Precision) -> None:
    """Write [N, L, C] atomically. Pieces may come in any order; a later piece replaces an earlier one."""
    dtype = DTYPES[precision]
    with replacing(path) as temporary, temporary.open("wb", buffering=0) as file:
        if hasattr(os, "posix_fallocate") and all(shape):  # fails now if the disk is too small
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
        for (start, _), contexts in pieces:
            file.seek(start * math.prod(shape[1:]) * dtype.itemsize)
            append(file, contexts.to(dtype))


def append(file: FileIO, tensor: Tensor) -> None:
    """Write the tensor's bytes. Not through a memory map: a full disk would kill the process."""
    rest = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data.cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def open_contexts(path: Path, shape: tuple[int, int, int], precision: Precision) -> Tensor:
    """The contexts of a file, memory-mapped. Raises Damaged if it has another size."""
    dtype, size = DTYPES[precision], math.prod(shape)
    if path.stat().st_size != size * dtype.itemsize:
        raise Damaged(path, f"does not hold {shape[0]:,} contexts")
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(shape)


class StreamRows(Rows):
    """Consecutive rows of seq_len tokens of the stream `tokens` [N]: every token is read once.

    Labels are the next tokens, N - 1 in total. The last row is padded with the last token, without scored labels.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, source: Stream | None = None, text_start: int = 0) -> None:
        starts = np.arange(0, max(len(tokens) - 1, 1), seq_len)
        super().__init__(tokens, starts, seq_len, text=tokens, text_start=text_start, source=source)

    @property
    def scored(self) -> int:
        return len(self.tokens) - 1

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """Positions in the stream of the rows' inputs, int64 [B, seq_len]."""
        return self.starts[np.asarray(indices, dtype=np.int64), None] + np.arange(self.seq_len)

    def arrays(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positions, last = self.positions(indices), len(self.tokens) - 1
        inputs = self.tokens[np.minimum(positions, last)].astype(np.int64)
        labels = self.tokens[np.minimum(positions + 1, last)].astype(np.int64)
        labels[positions >= last] = IGNORED
        return inputs, labels

    def joined(self, max_labels: int | None = None) -> Rows:
        tokens = self.tokens if max_labels is None else self.tokens[: max_labels + 1]
        return StreamRows(tokens, max(len(tokens) - 1, 1))


class ContextRows(StreamRows):
    """The same rows, whose batches hold all that the second phase reads: the windows of token ids and the contexts.

    contexts: of the stream's tokens, [N, L, C] on the CPU. window: ids in a window, which ends with the input itself.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, contexts: Tensor, window: int) -> None:
        super().__init__(tokens, seq_len)
        self.contexts, self.window = contexts, window

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs uint8 [B, T, bytes] and labels int64 [B, T].

        The bytes are those of the window's ids, int32 with -1 before the stream, and of the context [L, C] after them:
        one tensor, so that it goes to the device like other inputs.
        """
        labels = self.arrays(indices)[1]
        positions = np.minimum(self.positions(indices), len(self.tokens) - 1).flatten()
        places = positions[:, None] + np.arange(1 - self.window, 1)
        ids = np.where(places < 0, -1, self.tokens[places].astype(np.int32)).view(np.uint8)  # [B T, 4 window]
        contexts = self.contexts.view(len(self.tokens), -1).view(torch.uint8)
        # numpy's memory uses huge pages, which makes this copy several times as fast.
        inputs = torch.from_numpy(np.empty((len(ids), ids.shape[1] + contexts.shape[1]), np.uint8))
        inputs[:, : ids.shape[1]] = torch.from_numpy(ids)
        cuts = np.flatnonzero(np.diff(positions) != 1) + 1  # between runs of consecutive positions
        for start, stop in pairwise([0, *cuts.tolist(), len(positions)]):
            first = int(positions[start])
            inputs[start:stop, ids.shape[1] :] = contexts[first : first + stop - start]
        return inputs.unflatten(0, labels.shape), torch.from_numpy(labels)


def as_streams(data: Dataset) -> Dataset:
    """The same training and validation text as consecutive rows; raises ConfigError if data.split=chunks."""
    train = StreamRows(data.stream("train"), data.train.seq_len, data.train.source, data.train.text_start)
    val = StreamRows(data.stream("val"), data.train.seq_len, data.val.source, data.val.text_start)
    val_bytes = int(val.text_bytes(np.arange(1, len(val.tokens))).sum())
    counts = {
        "data/train_tokens": train.scored,
        "data/val_tokens": val.scored,
        "data/train_rows": len(train),
        "data/val_rows": len(val),
        "data/bytes_per_token": val_bytes / val.scored,
    }
    return replace(data, train=train, val=val, counts={**data.counts, **counts}, val_bytes=val_bytes)


def with_contexts(data: Dataset, window: int, val: Tensor, train: Tensor | None = None) -> Dataset:
    """`data` with ContextRows. val, train: the contexts [N, L, C] of the two texts; None: training rows stay."""
    length = data.train.seq_len
    rows = data.train if train is None else ContextRows(data.stream("train"), length, train, window)
    return replace(data, train=rows, val=ContextRows(data.stream("val"), length, val, window))


class ContextReader(LanguageModel):
    """A context/token model in its second phase: `hidden` takes the inputs of ContextRows instead of tokens.

    It shares the model's parameters and their names. The windows of embeddings get no gradient, as published, where
    they are stored with the contexts.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        for name, part in model.named_children():
            self.add_module(name, part)
        object.__setattr__(self, "model", model)  # not as a submodule: its parts are registered above
        self.hidden_size, self.vocab_size, self.seq_len = model.hidden_size, model.vocab_size, model.seq_len
        self.head, self.dtype = model.head, dtype

    def hidden(self, input_ids: Tensor, cache: None = None, start: int = 0) -> Tensor:
        """Final states [B, T, hidden_size] of inputs [B, T, bytes], as `ContextRows.batch` gives them."""
        model: Any = self.model
        inputs, of_ids = input_ids.flatten(0, 1), 4 * model.num_input_tokens
        ids = inputs[:, :of_ids].contiguous().view(torch.int32)  # [B T, n]
        contexts = inputs[:, of_ids:].view(self.dtype).unflatten(1, (-1, model.context_dim))  # [B T, L, C]
        with torch.no_grad():
            windows = model.windows(ids)
        states: Tensor = model.read(contexts, windows)
        return states.unflatten(0, input_ids.shape[:2])
