"""Decides whether to compile a run's model (runtime.compile) by measuring.

torch.compile fuses the operations between matrix products. Compiling takes half a minute the first time and a few
seconds from the cache on disk. The gain per step depends on the machine: a few percent on CPUs, far more where kernel
launches dominate. With "auto" a run is compiled if the gain per step times the remaining steps exceeds the time to
compile. Both are measured once per model, batch shape, precision and machine, in a run of `LONG` seconds or more, and
stored in the cache folder.

A compiled model rounds differently, as does a different number of threads, so a resumed run keeps its first choice.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from newllm.data.disk_cache import cache_folder, key_of
from newllm.store.intact import Damaged, read_json, write_json
from newllm.training.step import Piece, Step

LONG = 600.0  # seconds; shorter runs do not spend half a minute on measuring
_WORK = 3e13  # operations (6 per parameter and token) that every machine finishes within `LONG` seconds
_ROUNDS = 3


def compile_if_worthwhile(
    wanted: bool | Literal["auto"], step: Step, piece: Piece, steps: int, runtime: Any, say: Callable[[str], None]
) -> bool:
    """Compile the model of `step` if that is wanted or pays; returns whether it is compiled.

    piece: inputs and labels in the shape of training. steps: the remaining steps. Weights, gradients and random states
    are unchanged afterwards.
    """
    if wanted != "auto":
        return wanted and _compile(step, piece, say)
    record = _record(step, piece, runtime)
    try:
        if (known := read_json(record)) is not None:
            return pays(**known, steps=steps) and _compile(step, piece, say)
    except (Damaged, TypeError) as error:
        say(f"{error}; it is measured again")
    work = 6.0 * sum(p.numel() for p in step.parameters) * piece[0].numel()
    # The first pass is slower than the rest: a run that is short by its measure is short. The second is accurate.
    if steps * work < _WORK or any(steps * _seconds(step, piece) < LONG for _ in range(2)):
        return False
    began = time.perf_counter()
    if not _compile(step, piece, say):
        return False
    measured = {"compiling": time.perf_counter() - began}
    plain, compiled = [], []
    for _ in range(_ROUNDS):
        compiled.append(_seconds(step, piece))
        with step.plain():
            plain.append(_seconds(step, piece))
    measured |= {"plain": statistics.median(plain), "compiled": statistics.median(compiled)}
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, measured)
    chosen = pays(**measured, steps=steps)
    say(
        f"runtime.compile=auto: a compiled step is {measured['plain'] / measured['compiled']:.2f} x as fast and "
        f"compiling takes {measured['compiling']:.0f} s, so {steps:,} steps are {'compiled' if chosen else 'not'}."
    )
    if not chosen:
        step.batch_loss.compiled = None
    return chosen


def pays(plain: float, compiled: float, compiling: float, steps: int) -> bool:
    """Whether `steps` steps save more than the seconds of compiling; plain, compiled: seconds per pass."""
    return (plain - compiled) * steps > compiling


def _compile(step: Step, piece: Piece, say: Callable[[str], None]) -> bool:
    """Compile now, by one forward and backward pass. If that fails, print one line and stay uncompiled."""
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    import newllm.attention.blocked_operator  # noqa: F401 (registers the operator)

    step.batch_loss.compiled = torch.compile(step.model.hidden, dynamic=False)
    try:
        _seconds(step, piece)
    except Exception as error:  # anything that the compiler or its tool chain lacks on this machine
        step.batch_loss.compiled = None
        step.optimizer.zero_grad(set_to_none=True)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        say(f"torch.compile does not work here, so the model runs uncompiled: {reason}")
        return False
    return True


def _seconds(step: Step, piece: Piece) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    inputs, labels = (step.to_device(tensor) for tensor in piece)
    step.loss(inputs, labels, labels.numel()).backward()
    step.optimizer.zero_grad(set_to_none=True)
    if step.device.type == "cuda":
        torch.cuda.synchronize(step.device)
    return time.perf_counter() - start


def _record(step: Step, piece: Piece, runtime: Any) -> Path:
    on_gpu = step.device.type == "cuda"
    key = key_of(
        model=str(step.model),
        batch=list(piece[0].shape),
        precision=step.precision,
        device=torch.cuda.get_device_name(step.device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    return cache_folder(runtime) / "compile" / f"{key}.json"
