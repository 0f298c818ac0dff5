"""Run directories and tables of runs with given numbers. Nothing is trained."""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

import newllm
from newllm.config import effective, signature
from newllm.config.identity import with_content

SCORED = {"data/val_tokens": 7680, "data/bytes_per_token": 3.16}


def config(*overrides: str, seed: int = 1) -> dict[str, Any]:
    """The effective configuration of these overrides and this seed."""
    cfg = copy.deepcopy(_composed(overrides))
    cfg["seed"] = cfg["trainer"]["seed"] = seed
    return cfg


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    return with_content(effective(newllm.compose(overrides)))


def folder(root: Path, cfg: Mapping[str, Any], results: Mapping[str, Any] | None, state: str = "done") -> Path:
    """A run directory under `root`, named as runs are; without results.json if `results` is None."""
    choices = cfg["choices"]
    path = root / f"{choices['model']}-{choices['pos_encoding']}-s{cfg['seed']}-{signature(cfg)}"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(dict(cfg), sort_keys=False))
    (path / "status.json").write_text(json.dumps({"state": state, "error": None}))
    if results is not None:
        (path / "results.json").write_text(json.dumps({**SCORED, **results}))
    return path


def table(runs: Iterable[tuple[Sequence[str], int, Mapping[str, float]]]) -> pd.DataFrame:
    """What load_runs would give for finished runs of (overrides, seed, results)."""
    rows = []
    for overrides, seed, results in runs:
        cfg = config(*overrides, seed=seed)
        rows.append({
            "run": f"run{len(rows)}", "path": f"sweep/run{len(rows)}", "state": "done", "signature": signature(cfg),
            "seed": seed, "config": cfg, "scored": {}, **SCORED, **results,
        })  # fmt: skip
    return pd.DataFrame(rows)
