"""Contexts of a text: computed by passes of a recurrence, stored in memory-mapped files.

A file holds the numbers [N, L, C] in row-major order, in fp32, or in bf16 if the run computes in bf16. That loses
nothing: contexts are only read by matrix products, which would round them anyway.
"""

import math
import os
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from newllm.precision import Precision, autocast
from newllm.store.atomic import replacing
from newllm.two_phase.recurrence import Piece, Recurrence, sequential

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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


def shifted(previous: np.ndarray, start: int, stop: int, first: np.ndarray) -> np.ndarray:
    """The previous tokens' contexts [stop - start, C], which the tokens start … stop-1 read.

    first: the context [C] that the first token of the text reads.
    """
    if start:
        return np.array(previous[start - 1 : stop - 1])
    return np.concatenate([first[None], previous[: stop - 1]])


def parallel_contexts(
    recurrence: Recurrence, text: Text, previous: np.ndarray, size: int, precision: Precision
) -> Iterator[Piece]:
    """Contexts of all layers, `size` tokens at a time, from the predecessors' contexts in `previous` [N, C] (zeros for
    the first token)."""
    zeros = np.zeros(previous.shape[1], np.float32)
    for start, stop in text.pieces(size):
        context = torch.from_numpy(shifted(previous, start, stop, zeros)).to(text.device)
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
    contexts = torch.empty(shape, dtype=_DTYPES[precision])
    for (start, stop), piece in true_contexts(model.recurrence, Text(model, tokens, device), precision):
        contexts[start:stop] = piece
    return contexts


def write_contexts(path: Path, shape: tuple[int, int, int], pieces: Iterable[Piece], precision: Precision) -> None:
    """Write [N, L, C] atomically. Pieces may come in any order; a later piece replaces an earlier one."""
    dtype = _DTYPES[precision]
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


def open_contexts(path: Path, shape: tuple[int, int, int], precision: Precision) -> Tensor | None:
    """The contexts of a file, memory-mapped; None if it is missing or has another size."""
    dtype, size = _DTYPES[precision], math.prod(shape)
    if not path.exists() or path.stat().st_size != size * dtype.itemsize:
        return None
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(shape)
