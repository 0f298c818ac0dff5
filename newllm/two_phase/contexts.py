"""Contexts of a text: made by passes of a recurrence, and kept in files that are read through memory maps.

A file is the bare numbers [N, L, C], row after row: fp32, or bf16 (kept as uint16) where the run computes in bf16. That
loses nothing, since a context goes into products only, which would round it all the same.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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

_RUN = 4  # mean length of a run of consecutive places, below which they are gathered one by one


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


def true_contexts_in_memory(model: Any, tokens: np.ndarray, device: torch.device, precision: Precision) -> np.ndarray:
    """The true contexts [N, L, C] of tokens [N], the same bits as a file of them has: fp32, or bf16 as uint16."""
    shape = (len(tokens), model.recurrence.layers, model.recurrence.width)
    contexts = torch.empty(shape, dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    for (start, stop), piece in true_contexts(model.recurrence, Text(model, tokens, device), precision):
        contexts[start:stop] = piece
    return (contexts if precision == "fp32" else contexts.view(torch.uint16)).numpy()


@dataclass(frozen=True)
class Bf16Array:
    """[N, L, C] in bf16, a type that numpy does not have: indexed like an array, it gives fp32."""

    raw: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, key: Any) -> np.ndarray:
        return (self.raw[key].astype(np.uint32) << 16).view(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)


def as_fp32(raw: np.ndarray) -> np.ndarray | Bf16Array:
    """Stored contexts [N, L, C] that are read as fp32, whatever their type."""
    return Bf16Array(raw) if raw.dtype == np.uint16 else raw


def gather(raw: np.ndarray, places: np.ndarray) -> Tensor:
    """Stored contexts [.., L, C] of the tokens `places` [..], fp32 or bf16 as stored, on the CPU.

    Consecutive places are copied in one piece.
    """
    flat = places.reshape(-1)
    found = np.empty((len(flat), *raw.shape[1:]), raw.dtype)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat) != 1) + 1]) if len(flat) else np.empty(0, np.int64)
    if len(starts) * _RUN >= len(flat):
        np.take(raw, flat, axis=0, out=found)
    else:
        for start, stop in zip(starts, [*starts[1:], len(flat)], strict=True):
            found[start:stop] = raw[flat[start] : flat[start] + stop - start]
    tensor = torch.from_numpy(found)
    tensor = tensor.view(torch.bfloat16) if raw.dtype == np.uint16 else tensor
    return tensor.reshape(*places.shape, *raw.shape[1:])


def write_contexts(path: Path, shape: Shape, pieces: Iterable[Piece], precision: Precision) -> None:
    """Write [N, L, C], whole or not at all. Pieces in any order; of a range that comes twice the last holds."""
    size = _dtype(precision).itemsize
    with replacing(path) as temporary, temporary.open("wb", buffering=0) as file:
        if hasattr(os, "posix_fallocate") and all(shape):  # a disk that is too small says so now
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * size)
        for (start, _), contexts in pieces:
            file.seek(start * math.prod(shape[1:]) * size)
            append(file, contexts if precision == "fp32" else contexts.to(torch.bfloat16).view(torch.uint16))


def append(file: FileIO, tensor: Tensor) -> None:
    """The tensor's bytes. By writing, since a full disk kills a process that writes through a memory map."""
    rest = tensor.detach().contiguous().cpu().numpy().data.cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def open_contexts(path: Path, shape: Shape, precision: Precision) -> np.memmap | None:
    """What `write_contexts` has written; None if it is not there or of another size."""
    dtype = _dtype(precision)
    if not path.exists() or path.stat().st_size != math.prod(shape) * dtype.itemsize:
        return None
    return np.memmap(path, dtype, "r", shape=shape)


def _dtype(precision: Precision) -> np.dtype:
    return np.dtype(np.float32 if precision == "fp32" else np.uint16)
