"""Frozen runs small enough to be done many times, on real text, and some that end badly."""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SMALL = [
    "samples=160", "seq_len=32", "data.vocab_size=512", "facts=none", "batch_size=8", "epochs=2",
    "model.hidden_size=32", "model.num_layers=2", "model.heads=2", "model.mlp_size=64",
    "trainer.log_every=1", "runtime.threads=1", "eval=[loss,position]",
]  # fmt: skip


def freeze(run: Path, seed: int, **nodes: Mapping[str, Any]) -> Path:
    """Queue the small run of this seed, with the given nodes of the configuration exchanged, in the directory."""
    import newllm
    from newllm.config import effective
    from newllm.store.run_directory import RunDirectory

    config = effective(newllm.compose([*SMALL, f"seed={seed}"]))
    RunDirectory(run).freeze(config | {name: {**node} for name, node in nodes.items()})
    return run


def repeatable(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """metrics.jsonl and results.json without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [_timeless(json.loads(line)) for line in lines], _timeless(json.loads((run / "results.json").read_text()))


def state(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


class Slow:
    """A logger that leaves time to interfere."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        time.sleep(0.05)

    def close(self) -> None: ...


class Killed:
    """A logger that ends its process as the system does when memory runs out."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None: ...


class Broken:
    """An evaluator with a mistake."""

    def __call__(self, subject: Any) -> None:
        raise KeyError("head_dim")


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(("time/", "speed/"))}
