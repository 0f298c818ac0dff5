"""What the evaluators of long context leave in a run directory, constructed: metrics and tables."""

import csv
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 128
LENGTHS = [LENGTH * 2**power for power in range(4)]
DEPTHS = [0.1, 0.5, 0.9]
TASKS = {"needle": 0.1, "multi_key_needle": 0.25, "two_hops": 0.25}
TRIALS = 20
# How fast ln perplexity grows with each doubling of the length.
FAR = {"alibi": 0.0, "nope": 0.5, "rope": 0.8, "rope_alibi": 0.05, "rope_hybrid": 0.45, "rope_evq": 0.3}


def growth(config: Mapping[str, Any]) -> float:
    scaled = bool(config["pos_encoding"].get("scaling"))
    return FAR.get(config["choices"]["pos_encoding"], 0.6) * (0.3 if scaled else 1.0)


def long_results(config: Mapping[str, Any], loss: float) -> dict[str, float]:
    random, far = _random(config), growth(config)
    found = {}
    for power, length in enumerate(LENGTHS):
        right = 0.5 + 0.5 * math.exp(-far * power)
        tail = loss + 0.8 * far * power - 0.05 * power + 0.02 * random.normal()
        found |= {
            f"extrapolation/tail_ppl@{length}": math.exp(tail),
            f"passkey/accuracy@{length}": right,
            f"passkey/margin@{length}": 3 * (2 * right - 1) + 0.1 * random.normal(),
            f"passkey/exact@{length}": max(0.0, 1.6 * (right - 0.5)),
            **{f"ruler/{task}@{length}": chance + (1 - chance) * (2 * right - 1) for task, chance in TASKS.items()},
        }
    found["extrapolation/sliding_ppl@128"] = math.exp(loss + 0.01)
    for share in (0.5, 1, 2, 4):
        reached = 0.5 + 0.5 * math.exp(-far * share)
        found[f"distance/accuracy@{int(share * LENGTH)}"] = reached
        found[f"distance/margin@{int(share * LENGTH)}"] = 4 * (reached - 0.5) + 0.1 * random.normal()
    return found


def write_long_tables(folder: Path, config: Mapping[str, Any], loss: float) -> None:
    random, far = _random(config), growth(config)
    folder.mkdir(exist_ok=True)
    bins = [
        {"length": length, "from": 2**power, "to": 2 ** (power + 1), "tokens": 10 * 2**power, "se": 0.02,
         "loss": loss + 1.5 * 2 ** (-power / 2) + far * max(0, power - 7) + 0.02 * random.normal()}
        for length in LENGTHS for power in range(int(math.log2(length)))
    ]  # fmt: skip
    cells = [
        {"length": length, "depth": depth, "trials": TRIALS, "margin": 1.0, "exact": 0.1,
         "accuracy": round(TRIALS * (0.5 + 0.5 * math.exp(-far * power * (1.5 - depth)))) / TRIALS}
        for power, length in enumerate(LENGTHS) for depth in DEPTHS
    ]  # fmt: skip
    tasks = [
        {"task": task, "length": length, "accuracy": 0.5, "chance": chance, "trials": TRIALS, "margin": 0.3}
        for task, chance in TASKS.items() for length in LENGTHS
    ]  # fmt: skip
    for name, rows in (("extrapolation_positions", bins), ("passkey", cells), ("ruler", tasks)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _random(config: Mapping[str, Any]) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{config['pos_encoding']}{config['seed']}".encode()))
