"""A run small enough to be done many times, on real text."""

import json
from pathlib import Path
from typing import Any

import newllm

SMALL = [
    "samples=160", "seq_len=32", "data.vocab_size=512", "facts=none", "batch_size=8", "epochs=2",
    "model.hidden_size=32", "model.num_layers=2", "model.heads=2", "model.mlp_size=64",
    "trainer.log_every=1", "runtime.threads=1", "eval=[loss,position]",
]  # fmt: skip


def small_cfg(directory: Path, *overrides: str) -> Any:
    return newllm.compose([*SMALL, *overrides, f"hydra.run.dir={directory}"])


def repeatable(directory: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """metrics.jsonl and results.json without what depends on the clock."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    results = json.loads((directory / "results.json").read_text())
    return [_timeless(json.loads(line)) for line in lines], _timeless(results)


def state(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "status.json").read_text())


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(("time/", "speed/"))}
