"""How many training steps of single runs a second takes, in packs of several sizes."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import torch

from newllm.model import build_model
from newllm.pack.compatibility import require_compatible
from newllm.pack.packed_encoding import Rows
from newllm.pack.packed_step import PackedStep, StepRequest
from newllm.pack.stacked_model import stack
from newllm.run.prepare import frozen_config, prepare
from newllm.store.run_directory import RunDirectory
from newllm.training.run_context import Run
from newllm.training.step import Step, cut

_ROUNDS = 5
_SECONDS = 0.2  # shortest turn, so that the resolution of the clock does not matter
_BUDGET = 20.0  # seconds after which no further round begins


def measure(paths: Sequence[Path], sizes: Sequence[int]) -> list[float]:
    """Steps of single runs per second in packs of each of the `sizes`, of frozen runs (as many as the largest size).

    The sizes take turns; the figures are medians. Without sizes, this only checks that the models can be packed.
    Raises ConfigError if the runs cannot be packed.
    """
    configs = [RunDirectory(path).config() for path in paths]
    require_compatible(configs, len(configs))
    composed = [frozen_config(RunDirectory(path)) for path in paths]
    with torch.device("meta"):
        stack([build_model(cfg, tokens=cfg.model.vocab_size or 64) for cfg in composed[:2]], Rows())
    if not sizes:
        return []
    runs = [prepare(cfg) for cfg in composed]
    steppers = {size: stepper(runs[:size]) for size in sizes}
    for step in steppers.values():
        step()  # the first one also allocates memory
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    end = time.monotonic() + _BUDGET
    for number in range(_ROUNDS):
        if number and time.monotonic() > end:
            break
        for size, step in steppers.items():
            steps, start = 0, time.perf_counter()
            while steps < 2 or time.perf_counter() - start < _SECONDS:
                step()
                steps += 1
            seconds[size].append((time.perf_counter() - start) / steps)
    return [size / statistics.median(seconds[size]) for size in sizes]


def stepper(runs: Sequence[Run], graph: bool = False) -> Callable[[], None]:
    """A function that makes one packed step of these runs, on the data of the first, and waits for the device.

    graph: a single run's step is a CUDA graph, as without a pack.
    """
    first = runs[0]
    rows, size = first.data.train, min(first.trainer.batch_size, len(first.data.train))
    steps = [Step(run.model.train(), run.optim, run.device, run.precision, run.runtime.fused) for run in runs]
    steps[0].graph = graph
    orders = [first.data.order(run.trainer.seed, 0) for run in runs]
    packed, starts = PackedStep(), count(0, size)

    def make_step() -> None:
        start = next(starts) % (len(rows) - size + 1)
        requests = [
            StepRequest(step, cut(rows, order[start : start + size], first.trainer.accumulate), run.optim.lr)
            for step, order, run in zip(steps, orders, runs, strict=True)
        ]
        packed(requests)[-1][0].item()

    return make_step
