"""Reports of runs with a first phase: their table, figure, scaling laws next to the published shapes."""

import csv
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from newllm.config import compose, effective, signature
from newllm.report.__main__ import main
from tests.support.report_runs import make_run, with_seed

pytestmark = pytest.mark.xdist_group("report_section")  # one process, whose fixtures are made once

SIZES = (128, 256, 512, 1024)
SHAPES = {"6L/256/1tok": (6, 256, 1, -0.5), "3L/512/2tok": (3, 512, 2, -0.54)}  # and the exponent
SEEDS = (1, 2, 3)


def ppl(shape: str, samples: int, seed: int) -> float:
    return 2e5 * (125 * samples) ** SHAPES[shape][3] * (1 + 0.01 * (seed - 2))


def phase1(shape: str) -> list[dict[str, float]]:
    """Nine iterations whose loss comes to its bound."""
    width = SHAPES[shape][1]
    bound = -0.8 * math.sqrt(width / 2667)
    return [
        {"iteration": number, "loss": bound * (1 - 0.6**number), "bound": bound, "converged": min(1.0, number / 9),
         "seconds": 0.5}
        for number in range(2, 11)
    ]  # fmt: skip


@cache
def composed(shape: str) -> dict[str, Any]:
    layers, width, tokens, _ = SHAPES[shape]
    words = [f"model.layers={layers}", f"model.context_dim={width}", f"model.num_input_tokens={tokens}"]
    return effective(compose(["experiment=context_token_scaling_small", *words]))


def write_run(folder: Path, shape: str, samples: int, seed: int) -> None:
    config = with_seed(composed(shape), seed)
    config["samples"] = config["data"]["samples"] = samples
    path = folder / f"{samples}-s{seed}-{signature(config)}"
    (path / "tables").mkdir(parents=True)
    course = phase1(shape)
    results = {
        "data/train_tokens": 125 * samples, "data/val_tokens": 15_999, "data/bytes_per_token": 3.2,
        "val/ppl": ppl(shape, samples, seed), "val/accuracy": 0.2 + 0.001 * seed,
        "phase1/iterations": 10, "phase1/loss": course[-1]["loss"], "phase1/bound": course[-1]["bound"],
        "phase1/converged": 1.0, "phase1/reached": 1, "context/rank_share@train": 0.79,
        "context/rank_share@val": 0.78 + 0.01 * seed, "context/parallel_cosine": 0.997,
        "params/context_block": 14_169_600, "params/total": 65_625_856,
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.dump(config, Dumper=yaml.CSafeDumper))
    (path / "results.json").write_text(json.dumps(results))
    (path / "status.json").write_text(json.dumps({"state": "done", "error": None}))
    (path / "metrics.jsonl").write_text("")
    with (path / "tables" / "phase1.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(course[0]))
        writer.writeheader()
        writer.writerows(course)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 24 runs: two shapes, four sizes, three seeds."""
    folder = tmp_path_factory.mktemp("phases")
    for shape in SHAPES:
        for samples in SIZES:
            for seed in SEEDS:
                write_run(folder, shape, samples, seed)
    assert main([str(folder), f"out={folder / 'report'}", "law=saturating", "formats=[csv,md,svg]"]) == 0
    return folder / "report"


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_configuration_says_how_phase_1_ended(report: Path) -> None:
    found = lines(report / "phases.csv")
    assert len(found) == len(SHAPES) * len(SIZES)
    for line in found:
        course = phase1("6L/256/1tok" if "context_dim 256" in line["group"] else "3L/512/2tok")
        assert float(line["phase1/loss mean"]) == pytest.approx(course[-1]["loss"])
        assert float(line["phase1/bound mean"]) == pytest.approx(course[-1]["bound"])
        assert float(line["context/rank_share@val mean"]) == pytest.approx(0.8)
        assert "params/token_block mean" not in line  # no run has it
    text = (report / "phases.md").read_text()
    assert "14,169,600" in text
    assert "0.800 ± 0.010" in text


def test_loss_with_its_bound_and_convergence_are_drawn_by_iteration(report: Path) -> None:
    drawn = (report / "phases.svg").read_text()
    assert "Converged" in drawn
    assert "iteration" in drawn
    assert all(mark in drawn for mark in ("group-0-", "group-7-"))  # of eight configurations


def test_shapes_are_listed_above_the_published_ones(report: Path) -> None:
    found = lines(report / "scaling-shapes.csv")
    ours = {line["shape"]: line for line in found if line["whose"] == "these runs"}
    assert ours.keys() == SHAPES.keys()
    for shape, line in ours.items():
        assert float(line["alpha"]) == pytest.approx(SHAPES[shape][3], abs=0.01)
        assert float(line["low"]) < float(line["alpha"]) < float(line["high"])
        mean = np.exp(np.mean([math.log(ppl(shape, 1024, seed)) for seed in SEEDS]))
        assert float(line["best val/ppl"]) == pytest.approx(mean)
        assert (float(line["tokens"]), float(line["best accuracy"])) == (128_000, pytest.approx(0.202))
    published = {line["shape"]: line for line in found if line["whose"].startswith("published")}
    assert len(published) == 14
    wide = published["3L/1536/2tok"]
    assert (wide["alpha"], wide["best val/ppl"], wide["best accuracy"]) == ("-0.5402", "197.0", "0.229")
    assert float(wide["low"]) < -0.5402 < float(wide["high"])
    assert published["1L/768/2tok"]["low"] == ""  # its other points were not published here


def test_the_law_with_a_floor_is_not_preferred_without_a_floor(report: Path) -> None:
    found = lines(report / "scaling-floor.csv")
    assert {line["preferred"] for line in found} == {"power law"}
    assert all(float(line["aic power"]) < float(line["aic"]) for line in found)


def test_runs_without_a_first_phase_have_no_section(tmp_path: Path) -> None:
    for seed in SEEDS:
        make_run(tmp_path, with_seed(effective(compose(["samples=600"])), seed))
    assert main([str(tmp_path), "formats=[csv]"]) == 0
    assert not list((tmp_path / "report").glob("phases*"))
    assert not list((tmp_path / "report").glob("scaling*"))
