"""A run small enough to be done many times, on real text, and loggers and evaluators that make runs end badly."""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import newllm
from newllm.config import effective
from newllm.evaluation import Evaluator, Findings, Subject
from newllm.loggers import Logger
from newllm.position import NoPE
from newllm.store.run_directory import RunDirectory

SMALL_RUN = [
    "samples=160", "seq_len=32", "data.vocab_size=512", "facts=none", "batch_size=8", "epochs=2",
    "model.hidden_size=32", "model.num_layers=2", "model.heads=2", "model.mlp_size=64",
    "trainer.log_every=1", "runtime.threads=1", "eval=[loss,position]",
]  # fmt: skip


def small_config(directory: Path, *overrides: str) -> Any:
    return newllm.compose([*SMALL_RUN, *overrides, f"hydra.run.dir={directory}"])


def freeze_small_run(directory: Path, seed: int, **nodes: Mapping[str, Any]) -> Path:
    """Queue the small run of this seed in the directory, with the given nodes of the configuration replaced."""
    config = effective(newllm.compose([*SMALL_RUN, f"seed={seed}"]))
    RunDirectory(directory).freeze(config | {name: {**node} for name, node in nodes.items()})
    return directory


def timeless_results(directory: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """metrics.jsonl and results.json without what depends on the clock."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    results = json.loads((directory / "results.json").read_text())
    return [_timeless(json.loads(line)) for line in lines], _timeless(results)


def read_status(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "status.json").read_text())


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(("time/", "speed/"))}


class SlowLogger(Logger):
    """Makes the steps of a run's first attempt slow, so that a test can interfere."""

    def __init__(self, *, directory: Path) -> None:
        self.first = read_status(directory).get("attempt", 0) < 1  # loggers are made before the attempt begins

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        time.sleep(0.05 * self.first)

    def close(self) -> None: ...


class KillingLogger(Logger):
    """Kills its process at step 5, as the system does when memory runs out."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None: ...


class Greedy(NoPE):
    """Takes more memory than a GPU has, in training."""

    def at_input(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")
        return x


class BrokenEvaluator(Evaluator):
    """Fails with an unexpected error."""

    def __call__(self, subject: Subject) -> Findings:
        raise KeyError("head_dim")
