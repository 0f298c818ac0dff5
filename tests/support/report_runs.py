"""Run directories with constructed, plausible numbers, for tests of the report. Nothing is trained."""

import copy
import csv
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import newllm
from newllm.config import effective, signature
from tests.support.long_context_runs import growth, long_results, write_long_tables

ENCODINGS = {"rope": 0.0, "alibi": 0.067, "rope_alibi": 0.02, "nope": 0.20}  # on ln perplexity
ATTENTIONS = {"mha": 0.0, "gqa": 0.01, "mla": 0.04}
STEPS, TOKENS_PER_STEP, LAYERS, LENGTH = 400, 512, 4, 128
SMALL = ["samples=600", "epochs=2"]


def make_runs(
    folder: Path,
    configurations: Iterable[Sequence[str]],
    seeds: Sequence[int] = (1, 2, 3),
    *,
    shift: float = 0.0,
    noise: float = 0.004,
    tables: bool = True,
    long: bool = False,
) -> list[Path]:
    """A finished run directory for each configuration (overrides) and seed; `shift` is added to ln perplexity.

    long: with what the evaluators of long context leave.
    """
    paths = []
    for overrides in configurations:
        config = effective(newllm.compose([*SMALL, *overrides]))
        for seed in seeds:
            paths.append(make_run(folder, with_seed(config, seed), shift=shift, noise=noise, tables=tables, long=long))
    return paths


def grid(**axes: Sequence[object]) -> list[list[str]]:
    """The overrides of every combination: grid(theta=[1e4, 5e5], pos_encoding=["rope"])."""
    return [
        [f"{key}={value}" for key, value in zip(axes, point, strict=True)]
        for point in itertools.product(*axes.values())
    ]


def with_seed(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    changed = copy.deepcopy(dict(config))
    changed["seed"] = changed["trainer"]["seed"] = seed
    return changed


def make_run(
    folder: Path,
    config: Mapping[str, Any],
    *,
    shift: float = 0.0,
    noise: float = 0.004,
    tables: bool = True,
    long: bool = False,
    mark: str | None = None,
) -> Path:
    """One finished run; `mark` takes the place of the signature (computing ten thousand of them takes a while)."""
    choices = config["choices"]
    name = "-".join([choices["model"], choices["pos_encoding"], choices["attention"], f"s{config['seed']}"])
    path = folder / f"{name}-{mark or signature(config)}"
    path.mkdir(parents=True)
    loss = _loss(config, shift, noise)
    results = _results(config, loss) | (long_results(config, loss) if long else {})
    (path / "config.yaml").write_text(yaml.dump(dict(config), Dumper=yaml.CSafeDumper))
    (path / "results.json").write_text(json.dumps(results))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _metrics(loss)))
    write_status(path, "done", progress={"step": STEPS, "steps": STEPS, "epoch": 2})
    if tables:
        _write_tables(path / "tables", config, loss)
    if long:
        write_long_tables(path / "tables", config, loss)
    return path


def write_status(path: Path, state: str, **more: Any) -> None:
    times = {"started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T10:01:00+00:00"}
    path.mkdir(parents=True, exist_ok=True)
    (path / "status.json").write_text(json.dumps({"state": state, "attempt": 1, "error": None, **times, **more}))


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _loss(config: Mapping[str, Any], shift: float, noise: float) -> float:
    choices = config["choices"]
    loss = 5.0 + shift + ENCODINGS.get(choices["pos_encoding"], 0.01) + ATTENTIONS[choices["attention"]]
    if choices["attention"] == "mla":
        loss += 0.02 * math.log2(256 / config["kv_dim"])
    if "theta" in config:
        loss += 0.004 * (math.log10(config["theta"]) - 4.3) ** 2
    loss -= 0.4 * math.log(config["data"]["samples"] / 600)
    loss += 0.02 * float(np.random.default_rng(config["seed"]).normal())  # what a seed does to all its runs alike
    return loss + noise * float(_own(config).normal())


def _own(config: Mapping[str, Any]) -> np.random.Generator:
    nodes = {key: config[key] for key in ("choices", "pos_encoding", "attention", "data", "seed")}
    return np.random.default_rng(zlib.crc32(json.dumps(nodes, sort_keys=True).encode()))


def _results(config: Mapping[str, Any], loss: float) -> dict[str, float]:
    ppl, rng = math.exp(loss), _own(config)
    full = 4 * LAYERS * 2 * 64 * 4
    share = config["kv_dim"] / 512 if config["choices"]["attention"] == "mla" else 1.0
    forward, backward = 2 + rng.random(), 300 + 40 * rng.random()
    results = {
        "params/total": 3_700_000,
        "data/train_tokens": config["data"]["samples"] * 115,
        "data/val_tokens": 7680,
        "data/bytes_per_token": 3.16,
        "train/loss": loss - 0.5,
        "train/ppl": math.exp(loss - 0.5),
        "val/loss": loss,
        "val/ppl": ppl,
        "val/best_ppl": ppl,
        "val/best_epoch": 2,
        "val/bits_per_byte": loss / math.log(2) / 3.16,
        "speed/train_tokens_per_second": 9000 * (1 + 0.05 * rng.random()),
        "speed/wall_seconds": 20 + rng.random(),
        "kv_cache/bytes_per_token": full * share,
        "kv_cache/mha_bytes_per_token": full,
        "kv_cache/reduction": 1 - share,
        "reversal/forward_ppl": forward,
        "reversal/backward_ppl": backward,
        "reversal/ratio": forward / backward,
        "reversal/gap": backward - forward,
        "reversal/forward_margin": 2 + rng.random(),
        "reversal/backward_margin": 0.2 * rng.normal(),
        "reversal/forward_accuracy": 0.9 + 0.1 * rng.random(),
        "reversal/backward_accuracy": 0.5 + 0.05 * rng.normal(),
        "qk/q_max": 5 + rng.random(),
        "qk/k_max": 5 + rng.random(),
    }
    for begin, end, factor in ((0, 16, 1.3), (16, 32, 1.05), (32, 64, 1.0), (64, 96, 0.98), (96, 128, 0.97)):
        results[f"val/ppl_by_position/{begin}-{end}"] = ppl * factor
    far = growth(config)
    for power in range(5):
        results[f"extrapolation/ppl@{LENGTH * 2**power}"] = ppl * math.exp(far * power * (1 + 0.1 * rng.normal()))
    return results


def _metrics(loss: float) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(20, STEPS + 1, 20):
        course = loss + 2.5 * math.exp(-step / 80)
        line: dict[str, Any] = {"step": step, "train/loss": course - 0.3, "train/tokens": step * TOKENS_PER_STEP}
        lines.append(line)
        if step % (STEPS // 2) == 0:
            validation = {"val/loss": course, "val/ppl": math.exp(course), "val/best": True}
            lines.append({**line, "epoch": step // (STEPS // 2), **validation})
    return lines


def _write_tables(folder: Path, config: Mapping[str, Any], loss: float) -> None:
    folder.mkdir()
    rng = _own(config)
    position = [
        {"position": t, "rows": 60, "loss": loss + 0.5 * math.exp(-t / 10) + 0.03 * rng.normal(), "se": 0.1}
        for t in range(LENGTH)
    ]
    layers = [
        {"layer": layer, **{f"{name}_{what}": size + 0.3 * layer + 0.1 * rng.random()
         for name in ("q", "k") for what, size in (("max", 5.0), ("mean", 0.6), ("std", 0.8))}}
        for layer in range(LAYERS)
    ]  # fmt: skip
    bands = [
        {"layer": layer, "tensor": name, "cut": "frequency", "band": band, "dims": 32,
         "max": 4 + 0.4 * layer + (band == "low") + 0.2 * rng.random(), "mean": 0.7}
        for layer in range(LAYERS) for name in ("q", "k") for band in ("high", "low")
    ]  # fmt: skip
    _csv(folder / "position.csv", [{**row, "ppl": math.exp(row["loss"])} for row in position])
    _csv(folder / "qk_layers.csv", layers)
    if config["choices"]["pos_encoding"].startswith("rope"):
        _csv(folder / "qk_bands.csv", bands)


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
