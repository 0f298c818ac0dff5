import math

import numpy as np
import pytest

from newllm.analysis.planning import paired_spread, what_it_can_show
from newllm.analysis.statistics import effect_shown
from tests.support.run_folders import config, table

NOISE = np.random.default_rng(0).normal(0, 0.02, (3, 6))


def former(groups: int, seeds: int = 6):
    choices = (["pos_encoding=rope"], ["pos_encoding=alibi"], ["pos_encoding=nope"])
    shared = np.linspace(100, 130, 6)  # what a seed does to all its runs alike
    values = shared * np.exp(NOISE)
    return table(
        (choices[g], seed, {"val/ppl": float(values[g, seed])}) for g in range(groups) for seed in range(seeds)
    )


def planned(groups: int, seeds: int):
    return [config(f"theta={theta}", seed=seed) for theta in range(1000, 1000 + groups) for seed in range(seeds)]


def test_a_plan_says_the_smallest_difference_that_it_can_show():
    spread, known = paired_spread(former(3))
    left = NOISE - NOISE.mean(0) - NOISE.mean(1, keepdims=True) + NOISE.mean()  # without what groups and seeds do
    assert spread == pytest.approx(math.sqrt(2 * (left**2).sum() / (2 * 5)))
    assert known == "18 former runs of 3 groups"
    words = what_it_can_show(planned(9, 5), former(3))
    percent = 100 * math.expm1(effect_shown(5, alpha=0.05 / 8) * spread)
    assert words.startswith(
        f"5 seeds and 8 comparisons with a baseline show a difference in val/ppl of {percent:.2g} %"
    )
    alone, known = paired_spread(former(1))
    assert alone > spread  # without pairs, what seeds have in common is not known
    assert "as if seeds had nothing in common" in known


@pytest.mark.parametrize(
    ("groups", "seeds", "runs", "words"),
    [
        (4, 2, former(3), "With 2 seeds a report gives no verdict: that takes 3; type seeds=5."),
        (2, 3, former(3, seeds=1), "What 3 seeds and 1 comparison with a baseline can show is not known: no finished"),
        (2, 3, former(2).head(0), "no finished runs of several seeds"),
        (2, 3, former(2).drop(columns="val/ppl"), "no finished runs of several seeds"),
    ],
)
def test_a_plan_says_what_is_not_known(groups, seeds, runs, words):
    assert words in what_it_can_show(planned(groups, seeds), runs)
