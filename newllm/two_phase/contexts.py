"""The contexts of a text on disk: of every token those of all layers, memory-mapped.

A file is the bare numbers [N, L, C], row after row: fp32, or bf16 (kept as uint16) where the run computes in bf16. That
loses nothing, since a context goes into products only, and they would round it all the same.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from newllm.store.atomic import replacing
from newllm.training.precision import Precision
from newllm.two_phase.passes import Piece

Side = Literal["train", "val"]
Shape = tuple[int, int, int]  # N tokens, L layers, C

_RUNS = 4  # places in a run of consecutive ones on average, below which they are gathered one by one


@dataclass(frozen=True)
class Bf16Array:
    """[N, L, C] in bf16 on disk, which numpy has no word for: indexed like an array, it gives fp32."""

    raw: np.memmap

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, key: Any) -> np.ndarray:
        return (self.raw[key].astype(np.uint32) << 16).view(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)


class Contexts:
    """What the second phase reads: contexts of the training text and of the validation text."""

    def __init__(self, train: np.memmap, val: np.memmap) -> None:
        """The files as they are: float32 or uint16 [N, L, C]."""
        self._raw: dict[str, np.memmap] = {"train": train, "val": val}

    @property
    def train(self) -> np.memmap | Bf16Array:
        """[N, L, C] of the training text, token by token."""
        return _readable(self._raw["train"])

    @property
    def val(self) -> np.memmap | Bf16Array:
        """[N, L, C] of the validation text, by the true recurrence."""
        return _readable(self._raw["val"])

    def gather(self, side: Side, places: Tensor | np.ndarray) -> Tensor:
        """The contexts [.., L, C] of these tokens [..] of a side, fp32 or bf16 as stored, on the CPU.

        Consecutive places are copied in one piece.
        """
        raw = self._raw[side]
        wanted = places.cpu().numpy() if isinstance(places, Tensor) else np.asarray(places)
        flat = wanted.reshape(-1)
        found = np.empty((len(flat), *raw.shape[1:]), raw.dtype)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(flat) != 1) + 1]) if len(flat) else np.empty(0, np.int64)
        if len(starts) * _RUNS >= len(flat):
            np.take(raw, flat, axis=0, out=found)
        else:
            for start, stop in zip(starts, [*starts[1:], len(flat)], strict=True):
                found[start:stop] = raw[flat[start] : flat[start] + stop - start]
        tensor = torch.from_numpy(found)
        tensor = tensor.view(torch.bfloat16) if raw.dtype == np.uint16 else tensor
        return tensor.reshape(*wanted.shape, *raw.shape[1:])


def write_contexts(path: Path, shape: Shape, pieces: Iterable[Piece], precision: Precision) -> None:
    """Write [N, L, C], whole or not at all: the pieces are ranges of N and their contexts, in any order, and of what
    comes twice the last holds."""
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
    """The numbers in a file that `write_contexts` has written; None if it is not there or of another size."""
    dtype = _dtype(precision)
    if not path.exists() or path.stat().st_size != math.prod(shape) * dtype.itemsize:
        return None
    return np.memmap(path, dtype, "r", shape=shape)


def _dtype(precision: Precision) -> np.dtype:
    return np.dtype(np.float32 if precision == "fp32" else np.uint16)


def _readable(raw: np.memmap) -> np.memmap | Bf16Array:
    return Bf16Array(raw) if raw.dtype == np.uint16 else raw
