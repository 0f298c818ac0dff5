"""The published study of RoPE frequencies, its CPU-sized twins, the long-context studies: schedule, sizes of sweeps."""

import math
from functools import cache
from pathlib import Path

import pytest

import newllm
from newllm.build import build
from newllm.config import effective
from newllm.data.corpora.corpus import Corpus
from newllm.sweep.check import count_parameters
from newllm.sweep.command import read
from newllm.sweep.plan import by_signature, plan
from newllm.training.optimizer import AdamW
from newllm.training.trainer import Trainer

pytestmark = pytest.mark.xdist_group("experiments")  # in one process, so that each sweep is composed once

RUNS = {
    "rope_frequencies_split_a": 12,
    "rope_frequencies_split_b": 12,
    "rope_frequencies_3x3": 9,
    "rope_frequencies_2x10": 20,
    "rope_frequencies_controls": 24,
    "rope_frequencies_theta": 18,
    "frequency_families_small": 40,
    "alibi_slope_small": 45,
    "rotary_pct_small": 40,
    "theta_small": 40,
    "optimizers_small": 45,
    "wsd_small": 45,
    "width_small": 250,
    "vdproj_small": 25,
    "dproj_small": 25,
}
TWINS = ["rope_frequencies_split_a", "rope_frequencies_split_b", "rope_frequencies_3x3", "rope_frequencies_2x10",
         "rope_frequencies_controls"]  # fmt: skip


CONTEXT_TOKEN = {
    "context_token_scaling": 20,
    "context_token_grid": 36,
    "context_token_diversity": 12,
    "context_token_scaling_small": 36,
    "context_token_steps_small": 25,
}


@cache
def configurations(experiment: str) -> list[dict]:
    return [run.config for run in read([f"experiment={experiment}"], config_dir=None, several=True).runs]


@pytest.mark.parametrize("name", [*RUNS, *(f"{name}_small" for name in TWINS), *CONTEXT_TOKEN])
def test_every_run_of_a_sweep_is_another_one(name: str, tmp_path: Path) -> None:
    planned = plan(by_signature(configurations(name)), tmp_path)
    known = {**RUNS, **CONTEXT_TOKEN}
    assert planned.combinations == len(planned.runs) == known[name if name in known else name.removesuffix("_small")]


@pytest.mark.parametrize("name", [name for name in RUNS if name.endswith("_small")])
def test_studies_have_five_seeds_or_more_of_every_configuration(name: str) -> None:
    seeds: dict[str, set[int]] = {}
    for config in configurations(name):
        seeds.setdefault(str(config["pos_encoding"]), set()).add(config["seed"])
    assert len({frozenset(one) for one in seeds.values()}) == 1  # the same seeds, so that they pair
    assert min(map(len, seeds.values())) >= 5


def test_the_published_model_and_schedule() -> None:
    config = effective(newllm.compose(["experiment=rope_frequencies"]))
    assert count_parameters(config, 50304) == 50_928_128
    data, trainer = build(config["data"], Corpus), build(config["trainer"], Trainer)
    optim = build(config["optim"], AdamW)
    assert data.rows == (24_414, None)  # 50,000,000 // 2048 rows train, the hub's validation split validates
    _, steps = trainer.steps(24_414, 2048)
    assert steps == 762 == 24_414 // 32
    rates = [optim.rate(step, steps) for step in range(steps)]
    assert rates[0] == 0
    assert rates[14] < rates[15] == max(rates) == 6e-4
    assert rates[14] == pytest.approx(6e-4 * 14 / 15)
    published = {100: "5.81e-04", 200: "5.14e-04", 300: "4.09e-04", 400: "2.85e-04", 500: "1.64e-04", 600: "6.70e-05",
                 700: "1.01e-05"}  # fmt: skip
    assert {step: f"{rates[step]:.2e}" for step in published} == published
    assert rates[-1] == pytest.approx(3e-4 * (1 + math.cos(math.pi * 746 / 747)), rel=1e-9)
    assert optim.rate(steps, steps) == 0  # where the cosine ends
    assert (optim.betas, optim.weight_decay, optim.decay, optim.clip) == ((0.9, 0.95), 0.1, "all", 1.0)
    assert (trainer.precision, trainer.batch_size, config["data"]["eot"]) == ("bf16", 32, False)


def test_a_twin_trains_as_many_steps_with_the_same_schedule() -> None:
    config = effective(newllm.compose(["experiment=rope_frequencies_small"]))
    full = effective(newllm.compose(["experiment=rope_frequencies"]))
    data, trainer = build(config["data"], Corpus), build(config["trainer"], Trainer)
    optim = build(config["optim"], AdamW)
    assert trainer.steps(data.rows[0], data.seq_len) == (762, 762)
    assert {**config["optim"], "lr": None} == {**full["optim"], "lr": None}
    assert int(optim.warmup * 762) == 15
    assert config["model"]["hidden_size"] // config["model"]["heads"] == 64  # as many channels
    lengths = full["eval"]["extrapolation"]["lengths"]
    assert [f"{length // 2048}x" for length in lengths] == config["eval"]["extrapolation"]["lengths"]


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_sweeps_what_the_published_one_does_with_theta_by_the_length(name: str) -> None:
    """Published thetas over 16, as rows of 128 tokens are a sixteenth of those of 2048; everything else is equal."""

    def swept(experiment: str, scale: float) -> list[tuple]:
        return [
            (config["choices"]["pos_encoding"], config["seed"], _scaled(config["pos_encoding"], scale))
            for config in configurations(experiment)
        ]

    assert swept(f"{name}_small", 16) == swept(name, 1)


def _scaled(node: dict, scale: float) -> dict:
    return {
        key: value * scale if key == "theta" and value else _scaled(value, scale) if isinstance(value, dict) else value
        for key, value in node.items()
    }


def test_the_published_protocol_of_the_context_token_model() -> None:
    config = effective(newllm.compose(["experiment=context_token"]))
    data, trainer, optim = config["data"], config["trainer"], config["optim"]
    text = {"documents": 50, "val_documents": [1000, 1019], "val_joint": "\n\n", "eot": False, "tokenizer": "gpt2"}
    assert text.items() <= data.items()
    assert data["seq_len"] * trainer["batch_size"] == 7500
    assert (trainer["shuffle"], trainer["patience"], trainer["epochs"]) == (False, 1, 10)
    assert (optim["lr"], optim["weight_decay"], optim["schedule"], optim["clip"]) == (1e-3, 0, "constant", 1)
    phase1 = {"lr": 2e-3, "iterations": 40, "least": 5, "noise": 0.1, "batch_tokens": 8000, "clip": 1,
              "threshold": 0.03, "stop": 0.99, "steps": "pass", "start_std": 0.01, "wrap": True,
              "train_contexts": "parallel"}  # fmt: skip
    assert phase1.items() <= config["phase1"].items()
    assert (config["objective"]["weight"], config["embeddings"]["name"]) == (0.8, "gpt2")


def test_the_five_published_shapes_have_the_published_parameters() -> None:
    shapes = {config["choices"]["model"]: config for config in configurations("context_token_scaling")}
    assert {name: count_parameters(config, 50257) for name, config in shapes.items()} == {
        "context_token_6l_768_1tok": 52_782_336,
        "context_token_6l_768_2tok": 70_718_720,
        "context_token_6l_1152_1tok": 60_751_872,
        "context_token_9l_768_1tok": 59_874_048,
        "context_token_3l_1536_2tok": 65_625_856,
    }


@pytest.mark.parametrize("name", ["context_token_scaling_small", "context_token_steps_small"])
def test_all_sizes_of_a_small_study_have_the_same_validation_text_and_embeddings(name: str) -> None:
    configs = configurations(name)
    for config in configs:
        assert (config["data"]["val_samples"], config["data"]["split"]) == (128, "document")
        assert config["embeddings"]["tokens"] == 1_000_000  # of its own, not the run's
        assert config["phase1"]["batch_tokens"] == pytest.approx(8000 * 256 / 768, abs=1)  # the published bound
    shapes: dict[tuple, set[int]] = {}
    for config in configs:
        changed = {key: config["phase1"][key] for key in ("steps", "train_contexts")}
        model = config["model"]
        shape = (model["layers"], model["context_dim"], model["num_input_tokens"], *changed.values(), config["samples"])
        shapes.setdefault(shape, set()).add(config["seed"])
    assert set(map(len, shapes.values())) == {3 if name == "context_token_scaling_small" else 5}
    if name == "context_token_scaling_small":
        assert len(shapes) == 3 * 4
