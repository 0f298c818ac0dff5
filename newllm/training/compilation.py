"""Whether a run's model is compiled (runtime.compile), by a rule that measures.

torch.compile fuses what lies between the matrix products. It takes half a minute the first time, some seconds from the
cache on disk, and what it wins a step depends on the machine: a few percent on CPUs, far more where kernels are short
beside the time it takes to start them. So with "auto" a run is compiled if that pays back: the gain per step times the
steps there are has to exceed the time that compiling takes. Both are measured once for a model, batch, precision and
machine, in a run of `LONG` seconds or more, and remembered in the cache folder.

A compiled model rounds differently from a plain one, as another number of threads does, so a resumed run keeps what it
began with.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from newllm.data.cache import cache_folder, key_of
from newllm.store.atomic import write_text
from newllm.training.step import Piece, Step

LONG = 600.0  # seconds of training below which no half minute is spent on finding out
_WORK = 3e13  # operations (6 a parameter and token) that no machine takes `LONG` seconds for
_ROUNDS = 3


def settle(
    wanted: bool | Literal["auto"], step: Step, piece: Piece, steps: int, runtime: Any, say: Callable[[str], None]
) -> bool:
    """Compile the model of `step`, or leave it as it is; returns whether it is compiled.

    piece: inputs and labels as the steps will have them. steps: those that are left. The weights, their gradients and
    all random states are the same afterwards.
    """
    if wanted != "auto":
        return wanted and _compile(step, piece, say)
    record = _record(step, piece, runtime)
    if record.exists():
        return pays(**json.loads(record.read_text(encoding="utf-8")), steps=steps) and _compile(step, piece, say)
    work = 6.0 * sum(p.numel() for p in step.parameters) * piece[0].numel()
    # The first pass is slow, so it tells a short run, and the second one tells a long run.
    if steps * work < _WORK or any(steps * _seconds(step, piece) < LONG for _ in range(2)):
        return False
    began = time.perf_counter()
    if not _compile(step, piece, say):
        return False
    measured = {"compiling": time.perf_counter() - began}
    plain, compiled = [], []
    for _ in range(_ROUNDS):
        compiled.append(_seconds(step, piece))
        with step.batch_loss.plain():
            plain.append(_seconds(step, piece))
    measured |= {"plain": statistics.median(plain), "compiled": statistics.median(compiled)}
    record.parent.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(measured) + "\n")
    chosen = pays(**measured, steps=steps)
    say(
        f"runtime.compile=auto: a compiled step is {measured['plain'] / measured['compiled']:.2f} x as fast and "
        f"compiling takes {measured['compiling']:.0f} s, so {steps:,} steps are {'compiled' if chosen else 'not'}."
    )
    if not chosen:
        step.batch_loss.compiled = None
    return chosen


def pays(plain: float, compiled: float, compiling: float, steps: int) -> bool:
    """Whether so many steps win back the seconds of compiling, given those of a plain and of a compiled pass."""
    return (plain - compiled) * steps > compiling


def _compile(step: Step, piece: Piece, say: Callable[[str], None]) -> bool:
    """Compile now, in a pass forward and backward. If that fails, one line says so and the model stays plain."""
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    import newllm.attention.blocked_operator  # noqa: F401 (its import makes the operator)

    step.batch_loss.compiled = torch.compile(step.model.hidden, dynamic=False)
    try:
        _seconds(step, piece)
    except Exception as error:  # whatever the compiler or its tool chain lacks on this machine
        step.batch_loss.compiled = None
        step.optimizer.zero_grad(set_to_none=True)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        say(f"torch.compile does not work here, so the model runs as it is: {reason}")
        return False
    return True


def _seconds(step: Step, piece: Piece) -> float:
    """Time of a pass forward and backward."""
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
