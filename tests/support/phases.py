"""A first phase on real text, small enough to be repeated often."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

import newllm
from newllm.build import build
from newllm.data import Dataset, prepare
from newllm.model import build_model
from newllm.run.stage import Stage
from newllm.runtime import Runtime
from newllm.store.run_directory import RunDirectory
from newllm.training.optimizer import AdamW
from newllm.training.run_context import Run
from newllm.training.trainer import Trainer
from newllm.two_phase.first_phase import timeless

SMALL = [
    "data=stdlib", "data.vocab_size=512", "data.tokenizer_bytes=200000", "samples=40", "seq_len=32", "facts=none",
    "runtime.threads=1",
]  # fmt: skip
CONTEXT_TOKEN = (
    "model=context_token_tiny", "model.embed_dim=16", "model.context_dim=24", "model.layers=2",
    "model.num_input_tokens=2", "embeddings=none", "phase1.batch_tokens=500", "phase1.iterations=4",
    "phase1.least=2", "phase1.require_convergence=false",
)  # fmt: skip


@cache
def small_cfg(*overrides: str, model: tuple[str, ...] = CONTEXT_TOKEN) -> Any:
    """Composed once per process, since composing takes longer than the phase. Not to be changed."""
    return newllm.compose([*SMALL, *model, *overrides])


@cache
def small_data() -> Dataset:
    cfg = small_cfg()
    return prepare(cfg.data, None, seed=cfg.trainer.seed)  # from the cache that all tests share


def small_run(cfg: Any, folder: Path, **changes: Any) -> Run:
    """A run that has not started, with its directory and its cache in `folder`."""
    data = changes.pop("data", None) or small_data()
    directory = RunDirectory(changes.pop("directory", folder / "run"))
    directory.path.mkdir(parents=True, exist_ok=True)
    parts = {
        "runtime": Runtime(device="cpu", threads=1, cache_dir=str(folder / "cache")),
        "trainer": build(cfg.trainer, Trainer),
        "optim": build(cfg.optim, AdamW),
        "precision": "fp32",
    }
    model = changes.pop("model", None) or build_model(cfg, data.tokenizer.vocab_size)
    return Run(cfg=cfg, directory=directory, device=torch.device("cpu"), data=data, model=model,
               **{**parts, **changes})  # fmt: skip


def phase_and_run(cfg: Any, folder: Path, **changes: Any) -> tuple[Stage, Run]:
    """The first phase of a configuration, and a run for it."""
    phase = build(cfg.phase1, Stage, objective=dict(cfg.objective), seed=cfg.trainer.seed)
    return phase, small_run(cfg, folder, **changes)


def timeless_lines(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without values that depend on the clock."""
    return [timeless(line) for line in run.directory.metrics()]
