"""A first phase on real text, small enough to be done many times."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

import newllm
from newllm.build import build
from newllm.console import Console
from newllm.data import Dataset, prepare
from newllm.model import build_model
from newllm.runtime import Runtime
from newllm.store.run_directory import RunDirectory
from newllm.training.loggers import NoLogger
from newllm.training.signals import Signals
from newllm.two_phase import FixedPoint, Work
from newllm.two_phase.lines import CLOCK

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
    """Composed once a process: it is read only, and composing takes longer than the phase."""
    return newllm.compose([*SMALL, *model, *overrides])


@cache
def small_data() -> Dataset:
    cfg = small_cfg()
    return prepare(cfg.data, None, seed=cfg.trainer.seed)  # from the cache that all tests share


def phase_and_work(cfg: Any, folder: Path, **changes: Any) -> tuple[FixedPoint, Work]:
    """The phase of a configuration and what it works with, in the run directory `folder`/run with a cache beside."""
    data = changes.pop("data", None) or small_data()
    directory = RunDirectory(changes.pop("run", folder / "run"))
    directory.path.mkdir(parents=True, exist_ok=True)
    parts = {"precision": "fp32", "console": Console(bar=False), "signals": Signals(), **changes}
    work = Work(
        cfg=cfg,
        data=data,
        model=build_model(cfg, data.tokenizer.vocab_size),
        device=torch.device("cpu"),
        runtime=Runtime(device="cpu", threads=1, cache_dir=str(folder / "cache")),
        directory=directory,
        logger=NoLogger(),
        **parts,
    )
    phase: FixedPoint = build(cfg.phase1, objective=dict(cfg.objective), seed=cfg.trainer.seed)
    return phase, work


def lines(work: Work) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in work.directory.metrics()]


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith(CLOCK)}
