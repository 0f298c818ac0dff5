"""How many training steps of runs a second takes, in packs of several sizes."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from newllm.build import build
from newllm.model import build_model
from newllm.pack.compatibility import require_compatible
from newllm.pack.packed_encoding import Rows
from newllm.pack.packed_step import PackedStep, StepRequest
from newllm.pack.stacked_model import stack
from newllm.run.prepare import prepare
from newllm.store.run_directory import RunDirectory
from newllm.training.run_context import Run
from newllm.training.step import Step, cut

ROUNDS = 5
_SECONDS = 0.2  # at least so long a turn, so that the clock is no matter
_BUDGET = 20.0  # seconds, after which there are no more rounds


def measure(runs: Sequence[Path], sizes: Sequence[int]) -> list[float]:
    """Steps of runs per second in packs of each of the `sizes`, of the frozen `runs` (as many as the largest).

    The sizes take turns; the figures are medians. Without sizes it is only tried whether the models can be packed.
    ConfigError if the runs cannot be packed.
    """
    configs = [RunDirectory(run).config() for run in runs]
    require_compatible(configs, len(configs))
    composed = [OmegaConf.create({**config, "run_dir": str(run)}) for config, run in zip(configs, runs, strict=True)]
    with torch.device("meta"):
        stack([build_model(cfg, tokens=cfg.model.vocab_size or 64) for cfg in composed[:2]], Rows())
    if not sizes:
        return []
    prepared = prepare(composed[0])
    steppers = {size: stepper(composed[:size], prepared) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    end = time.monotonic() + _BUDGET
    for step in steppers.values():
        step()  # the first one also sets memory aside
    for _ in range(ROUNDS):
        for size, step in steppers.items():
            seconds[size].append(_turn(step))
        if time.monotonic() > end:
            break
    return [size / statistics.median(seconds[size]) for size in sizes]


def stepper(configs: Sequence[DictConfig], p: Run) -> Callable[[], None]:
    """A function that makes one packed step of runs of these configurations, afresh, on the data of `p`.

    It returns when the device has done it.
    """
    packed = PackedStep()
    optims = [build(cfg.optim) for cfg in configs]
    models = [build_model(cfg, p.data.tokenizer.vocab_size).to(p.device).train() for cfg in configs]
    fused = p.runtime.fused
    steps = [Step(model, optim, p.device, p.precision, fused) for model, optim in zip(models, optims, strict=True)]
    orders = [p.data.order(cfg.trainer.seed, 0) for cfg in configs]
    size = min(p.trainer.batch_size, len(p.data.train))
    places = count(0, size)

    def make() -> None:
        start = next(places) % (len(p.data.train) - size + 1)
        cuts = [cut(p.data.train, order[start : start + size], p.trainer.accumulate) for order in orders]
        requests = [
            StepRequest(step, pieces, optim.lr) for step, pieces, optim in zip(steps, cuts, optims, strict=True)
        ]
        packed(requests)[-1][0].item()

    return make


def _turn(step: Callable[[], None]) -> float:
    """Seconds of a step, the mean of a turn."""
    made, began = 0, time.perf_counter()
    while made < 2 or time.perf_counter() - began < _SECONDS:
        step()
        made += 1
    return (time.perf_counter() - began) / made
