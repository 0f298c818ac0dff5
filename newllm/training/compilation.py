"""Whether a run's model is compiled, by a rule that measures.

torch.compile fuses what lies between the matrix products. It takes half a minute the first time, some seconds from the
cache on disk, and what it wins a step depends on the machine: a few percent on CPUs, far more where kernels are short
beside the time it takes to start them. So a run is compiled where that pays back: the gain per step, measured once for
this model, batch, precision and machine and remembered in the cache folder, times the steps there are, has to exceed
the time that compiling takes. Nothing is measured for runs of less than `LONG` seconds.

A compiled model rounds differently from a plain one, as another number of threads does, so a run that goes on keeps
what it began with.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from newllm.data.cache import cache_folder, key_of
from newllm.store.atomic import write_text
from newllm.training.step import Piece, Step

LONG = 600.0  # seconds of training below which no half minute is spent on finding out
_WORK = 3e13  # operations (6 a parameter and token) that take no machine so long: not even a pass is timed then
_ROUNDS = 3


@dataclass(frozen=True)
class Measured:
    """Seconds of one step's forward and backward pass either way, and of compiling."""

    plain: float
    compiled: float
    compiling: float

    def pays(self, steps: int) -> bool:
        """Whether so many steps win back the time that compiling takes."""
        return (self.plain - self.compiled) * steps > self.compiling


def settle(
    wanted: bool | Literal["auto"], step: Step, piece: Piece, steps: int, runtime: Any, say: Callable[[str], None]
) -> bool:
    """Compile the model of `step`, or leave it as it is; returns whether it is compiled.

    wanted: True and False decide by themselves. piece: inputs and labels as the steps will have them. steps: those that
    are left. The weights, their gradients and all random states are afterwards as they were before.
    """
    if wanted is False:
        return False
    if wanted is True:
        return _compile(step, piece, say)
    record = _record(step, piece, runtime)
    if record.exists():
        measured = Measured(**json.loads(record.read_text(encoding="utf-8")))
        return measured.pays(steps) and _compile(step, piece, say)
    # The first pass is slow, so it is enough to tell a short run, and a second one tells a long run.
    if steps * _work(step, piece) < _WORK or any(steps * _seconds(step, piece) < LONG for _ in range(2)):
        return False
    began = time.perf_counter()
    if not _compile(step, piece, say):
        return False
    compiling = time.perf_counter() - began
    plain, compiled = [], []
    for _ in range(_ROUNDS):
        compiled.append(_seconds(step, piece))
        with step.batch_loss.plain():
            plain.append(_seconds(step, piece))
    measured = Measured(statistics.median(plain), statistics.median(compiled), compiling)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(asdict(measured)) + "\n")
    chosen = measured.pays(steps)
    say(
        f"runtime.compile=auto: a compiled step is {measured.plain / measured.compiled:.2f} x as fast and compiling "
        f"takes {compiling:.0f} s, so {steps:,} steps are {'compiled' if chosen else 'not'}."
    )
    if not chosen:
        step.batch_loss.compiled = None
    return chosen


def _compile(step: Step, piece: Piece, say: Callable[[str], None]) -> bool:
    """Compile now, in a pass forward and backward; where that fails, one line says so and the model stays plain."""
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    import newllm.attention.blocked_operator  # noqa: F401 (its import makes the operator)

    step.batch_loss.compiled = torch.compile(step.model.hidden, dynamic=False)
    try:
        _pass(step, piece)
    except Exception as error:  # whatever the compiler or its tool chain lacks on this machine
        step.batch_loss.compiled = None
        step.optimizer.zero_grad(set_to_none=True)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        say(f"torch.compile does not work here, so the model runs as it is: {reason}")
        return False
    return True


def _work(step: Step, piece: Piece) -> float:
    return 6.0 * sum(p.numel() for p in step.parameters) * piece[0].numel()


def _pass(step: Step, piece: Piece) -> None:
    inputs, labels = (step.to_device(tensor) for tensor in piece)
    step.loss(inputs, labels, labels.numel()).backward()
    step.optimizer.zero_grad(set_to_none=True)


def _seconds(step: Step, piece: Piece) -> float:
    start = time.perf_counter()
    _pass(step, piece)
    if step.device.type == "cuda":
        torch.cuda.synchronize(step.device)
    return time.perf_counter() - start


def _record(step: Step, piece: Piece, runtime: Any) -> Path:
    on_gpu = step.device.type == "cuda"
    device = torch.cuda.get_device_name(step.device) if on_gpu else torch.backends.cpu.get_cpu_capability()
    key = key_of(
        model=str(step.model),
        batch=list(piece[0].shape),
        precision=step.precision,
        device=device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    return cache_folder(runtime) / "compile" / f"{key}.json"
