"""Memory of a training step: its peak as a reproducible number, and what to type if there is too little.

The resident memory of a process differs from run to run, so one step is measured instead: on CUDA by the allocator,
elsewhere by adding up the storages of the tensors it creates, which excludes the scratch memory of kernels.
"""

import math
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from newllm.errors import RunError, ran_out_of_memory
from newllm.model import LanguageModel


def peak_bytes(step: Callable[[], object], resident: Iterable[Tensor], device: torch.device) -> int:
    """Largest number of bytes alive at once during `step`, counting the `resident` tensors alive before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    with _Watch(resident) as watch:
        step()
    return watch.peak


class _Watch(TorchDispatchMode):
    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0
        for tensor in resident:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


@contextmanager
def told_if_too_little(
    pieces: Sequence[tuple[Tensor, Tensor]], model: LanguageModel, device: torch.device, runs: int = 1
) -> Iterator[None]:
    """If memory runs out in this block, a RunError says what was tried and what fits.

    The block makes a training step of `model` on `pieces` ([b, T] each), or of each of `runs` packed ones like it.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        asked, place, share = _bytes_asked(str(error)), "", 0.5
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            others = total - free - torch.cuda.memory_reserved(device)
            fixed = 4 * runs * sum(p.nbytes for p in model.parameters())  # weights, gradients and two moments
            peak = torch.cuda.max_memory_allocated(device) + (asked or 0)
            share = (total - others - fixed) / max(peak - fixed, 1)
            place = f" on {device}, which has {_gigabytes(total)} ({_gigabytes(others)} used by other processes)"
        rows, length = sum(len(inputs) for inputs, _ in pieces), pieces[0][0].shape[1]
        packed = f" for each of {runs} packed runs" if runs > 1 else ""
        more = f" when {_gigabytes(asked)} more were asked for" if asked else ""
        goes_on = "trainer.recompute=true goes on with this run in less memory; " if model.recompute is False else ""
        needs_less = "a smaller pack=… in a new sweep needs less" if runs > 1 else what_fits(rows, len(pieces), share)
        raise RunError(
            f"The memory is not enough for a step on {rows} x {length} tokens{packed}: it ran out{more}{place}; "
            f"{goes_on}{needs_less}"
        ) from error


def what_fits(rows: int, pieces: int, share: float) -> str:
    """What to type after a step on `rows` in `pieces` has failed, if there is memory for a `share` of a piece."""
    largest = math.ceil(rows / pieces)
    fitting = min(largest - 1, math.floor(largest * share))
    if fitting < 1:
        return "a smaller seq_len or model needs less"
    return (
        f"in a new run trainer.accumulate={math.ceil(rows / fitting)} keeps the batch, or "
        f"batch_size={fitting * pieces} should fit"
    )


def _bytes_asked(message: str) -> int | None:
    """The bytes that torch could not allocate, from its message."""
    found = re.search(r"tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", message, re.IGNORECASE)
    return found and round(float(found[1]) * 1024 ** ("bytes", "KiB", "MiB", "GiB").index(found[2]))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.3g} GB"
