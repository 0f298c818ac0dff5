"""Contexts of a text: made by passes of a recurrence, and kept in files that are read through memory maps.

A file is the bare numbers [N, L, C], row after row: fp32, or bf16 where the run computes in bf16. That loses nothing,
since a context goes into products only, which would round it all the same.
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

Shape = tuple[int, int, int]  # N tokens, L layers, C

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Text:
    """A text as a model's recurrence reads it.

    tokens: ids [N], memory-mapped or not. Calling it with (start, stop) gives u_start … u_stop-1, [stop - start, I].
    """

    def __init__(self, model: Any, tokens: np.ndarray, device: torch.device) -> None:
        self.model, self.tokens, self.device = model, tokens, device
        self._before = int(getattr(model, "num_input_tokens", 1)) - 1  # tokens that an input reaches back

    def __len__(self) -> int:
        return len(self.tokens)

    @torch.no_grad()
    def __call__(self, start: int, stop: int) -> Tensor:
        first = max(0, start - self._before)
        ids = torch.from_numpy(self.tokens[first:stop].astype(np.int64)).to(self.device)
        inputs: Tensor = self.model.recurrent_inputs(ids)
        return inputs[start - first :]

    def pieces(self, size: int) -> list[tuple[int, int]]:
        """(start, stop) of consecutive portions of `size` tokens; the last may be shorter."""
        return [(start, min(start + size, len(self))) for start in range(0, len(self), size)]


def shifted(previous: np.ndarray, start: int, stop: int, first: np.ndarray) -> np.ndarray:
    """The contexts [stop - start, C] that the tokens start … stop-1 begin from: those of the tokens before them.

    first: [C], what the text's first token begins from.
    """
    if start:
        return np.array(previous[start - 1 : stop - 1])
    return np.concatenate([first[None], previous[: stop - 1]])


def parallel_contexts(
    recurrence: Recurrence, text: Text, previous: np.ndarray, size: int, precision: Precision
) -> Iterator[Piece]:
    """All layers' contexts, `size` tokens at a time, each token beginning from its predecessor's in `previous` [N, C],
    the first one from zeros."""
    zeros = np.zeros(previous.shape[1], np.float32)
    for start, stop in text.pieces(size):
        context = torch.from_numpy(shifted(previous, start, stop, zeros)).to(text.device)
        with torch.no_grad(), autocast(text.device, precision):
            states = recurrence(context, text(start, stop))
        yield (start, stop), states


def true_contexts(recurrence: Recurrence, text: Text, precision: Precision) -> Iterator[Piece]:
    """All layers' contexts of the recurrence from zeros, token after token; pieces as `sequential` gives them."""
    pieces = sequential(recurrence, text, len(text), torch.zeros(recurrence.width, device=text.device))
    while True:
        with autocast(text.device, precision):  # not around the yield, where it would hold for the caller too
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def true_contexts_in_memory(model: Any, tokens: np.ndarray, device: torch.device, precision: Precision) -> Tensor:
    """The true contexts [N, L, C] of tokens [N], with the bits that a file of them has."""
    shape = (len(tokens), model.recurrence.layers, model.recurrence.width)
    contexts = torch.empty(shape, dtype=_DTYPES[precision])
    for (start, stop), piece in true_contexts(model.recurrence, Text(model, tokens, device), precision):
        contexts[start:stop] = piece
    return contexts


def write_contexts(path: Path, shape: Shape, pieces: Iterable[Piece], precision: Precision) -> None:
    """Write [N, L, C], whole or not at all. Pieces in any order; of a range that comes twice the last holds."""
    dtype = _DTYPES[precision]
    with replacing(path) as temporary, temporary.open("wb", buffering=0) as file:
        if hasattr(os, "posix_fallocate") and all(shape):  # a disk that is too small says so now
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
        for (start, _), contexts in pieces:
            file.seek(start * math.prod(shape[1:]) * dtype.itemsize)
            append(file, contexts.to(dtype))


def append(file: FileIO, tensor: Tensor) -> None:
    """The tensor's bytes. By writing, since a full disk kills a process that writes through a memory map."""
    rest = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data.cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def open_contexts(path: Path, shape: Shape, precision: Precision) -> Tensor | None:
    """What `write_contexts` has written, memory-mapped; None if it is not there or of another size."""
    dtype, size = _DTYPES[precision], math.prod(shape)
    if not path.exists() or path.stat().st_size != size * dtype.itemsize:
        return None
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(shape)
