import math

import pytest
from torch import nn

import newllm
from newllm.errors import ConfigError
from newllm.training.muon import Muon
from newllm.training.optimizer import AdamW, lower_rate


def test_published_cosine_schedule() -> None:
    """762 steps, 15 of warm-up from a rate of 0, then a cosine to 0: the rates that the 50.9M runs logged."""
    optim = AdamW(lr=6e-4, betas=[0.9, 0.95], warmup=0.02, final=0.0)
    assert optim.rate(0, 762) == 0
    assert optim.rate(3, 762) == pytest.approx(6e-4 * 3 / 15)
    assert optim.rate(15, 762) == pytest.approx(6e-4)
    assert optim.rate(400, 762) == pytest.approx(6e-4 * 0.5 * (1 + math.cos(math.pi * 385 / 747)))
    logged = {100: 5.81e-4, 200: 5.14e-4, 300: 4.09e-4, 400: 2.85e-4, 500: 1.64e-4, 600: 6.70e-5, 700: 1.01e-5}
    for step, rate in logged.items():
        assert optim.rate(step, 762) == pytest.approx(rate, rel=0.02)


def test_constant_schedule_and_final_share() -> None:
    constant = AdamW(lr=1e-4, betas=[0.9, 0.999], schedule="constant")
    assert {constant.rate(step, 50) for step in range(50)} == {1e-4}
    cosine = AdamW(lr=1e-3, betas=[0.9, 0.95], warmup=10, final=0.1)
    assert cosine.rate(10, 1000) == 1e-3
    assert cosine.rate(999, 1000) == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize(("shape", "half"), [("sqrt", 1 - math.sqrt(0.5)), ("linear", 0.5)])
def test_wsd_warms_up_stays_and_cools_down(shape: str, half: float) -> None:
    optim = AdamW(lr=1e-3, betas=[0.9, 0.95], schedule="wsd", warmup=10, cooldown=20, cooldown_shape=shape)
    assert [optim.rate(step, 100) for step in (0, 5, 10, 79, 80)] == [0.0, 5e-4, 1e-3, 1e-3, 1e-3]
    assert optim.rate(90, 100) == pytest.approx(1e-3 * half)
    assert 0 < optim.rate(99, 100) < optim.rate(81, 100) < 1e-3
    assert optim.rate(100, 100) == 0  # where the cool-down ends
    assert [optim.rate(step, 400) for step in range(80)] == [optim.rate(step, 100) for step in range(80)]
    share = AdamW(lr=1e-3, betas=[0.9, 0.95], schedule="wsd", warmup=0.1, final=0.1, cooldown=0.2, cooldown_shape=shape)
    assert share.rate(90, 100) == pytest.approx(1e-3 * (0.1 + 0.9 * half))
    whole = AdamW(lr=1e-3, betas=[0.9, 0.95], schedule="wsd", cooldown=1, cooldown_shape=shape)  # a share: all steps
    assert whole.rate(0, 100) == 1e-3
    assert whole.rate(50, 100) == pytest.approx(1e-3 * half)


def test_decay_applies_to_matrices_or_to_all() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))

    def decay(which: str) -> dict[int, float]:
        groups = AdamW(lr=1e-3, betas=[0.9, 0.95], weight_decay=0.1, decay=which).optimizer(model).param_groups
        return {id(p): group["weight_decay"] for group in groups for p in group["params"]}

    matrices, everything = decay("matrices"), decay("all")
    for parameter in model.parameters():
        assert matrices[id(parameter)] == (0.1 if parameter.dim() == 2 else 0.0)
        assert everything[id(parameter)] == 0.1


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_the_embedding_has_a_rate_of_its_own_and_the_decay_of_the_others(kind: type[AdamW]) -> None:
    model = newllm.build_model(newllm.compose(["model.hidden_size=32", "model.num_layers=1"]), tokens=64)
    optim = kind(lr=1e-3, betas=[0.9, 0.95], weight_decay=0.1, embedding_rate=10.0)
    groups = {id(p): group for group in optim.optimizer(model).param_groups for p in group["params"]}
    assert len(groups) == len(list(model.parameters()))
    embedding, matrix = groups[id(model.embed.weight)], groups[id(model.blocks[0].mlp.down.weight)]
    assert (embedding["rate_factor"], matrix["rate_factor"]) == (10, 1)
    assert embedding["weight_decay"] * embedding["rate_factor"] == matrix["weight_decay"] == 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.0},
        {"betas": [0.9]},
        {"betas": [0.9, 1.0]},
        {"clip": 0.0},
        {"warmup": 1.5},
        {"final": 2.0},
        {"cooldown": 0.0},
        {"cooldown": 2.5},
    ],
)
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=f"optim.{next(iter(options))}"):
        AdamW(**{"lr": 1e-3, "betas": [0.9, 0.95]} | options)


@pytest.mark.parametrize(("rate", "lower"), [(1e-4, 1e-5), (5e-3, 5e-4), (0.5, 1e-3), (1e20, 1e-3)])
def test_the_rate_to_try_after_one_that_diverged_is_one_that_can_work(rate: float, lower: float) -> None:
    assert lower_rate(rate) == pytest.approx(lower)
