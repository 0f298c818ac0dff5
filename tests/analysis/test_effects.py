"""Main effects and interactions of a crossed sweep."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest

from newllm.analysis.comparison import Interval, judge
from newllm.analysis.effects import find_crossing, interactions, main_effects
from newllm.analysis.run_groups import Group, groups
from tests.support.run_folders import table

METRIC = "val/ppl"


def crossed(values: Mapping[tuple[str, ...], np.ndarray], metric: str = METRIC) -> list[Group]:
    """A group for each combination of values of factors f0, f1, …, with its metric for seeds 1, 2, …"""
    frames, found, start = [], [], 0
    for _, numbers in values.items():
        columns = {
            "seed": range(1, len(numbers) + 1),
            metric: numbers,
            "config": [{"eval": {}, "choices": {}}] * len(numbers),
        }
        frames.append(pd.DataFrame({**columns, "state": "done"}))
    frame = pd.concat(frames, ignore_index=True)
    for cell, numbers in values.items():
        settings = {f"f{place}": value for place, value in enumerate(cell)}
        found.append(Group(" ".join(cell), settings, frame, np.arange(start, start + len(numbers))))
        start += len(numbers)
    return found


def cells(*factors: str) -> list[tuple[str, ...]]:
    return list(itertools.product(*factors))


def test_effects_are_averages_over_the_other_factors_seed_by_seed() -> None:
    level = {("a", "x"): 1.0, ("a", "y"): 1.1, ("b", "x"): 1.2, ("b", "y"): 1.5}
    noise = {cell: np.array([0.0, 0.01 * (cell == ("b", "y")), 0.02 * (cell == ("b", "x"))]) for cell in level}
    found = crossed({cell: 100 * np.exp(value + noise[cell] + [0, 0.3, 0.1]) for cell, value in level.items()})
    crossing = find_crossing(found)
    assert crossing is not None
    assert {name: [*values] for name, values in crossing.factors.items()} == {"f0": ["a", "b"], "f1": ["x", "y"]}
    first, second = main_effects(crossing, found[0], METRIC)
    assert (first.factor, first.change, first.over) == ("f0", "b against a", 2)
    by_seed = [0.3, 0.305, 0.31]  # mean of (b, x) - (a, x) and (b, y) - (a, y)
    assert first.comparison.differences == pytest.approx(by_seed)
    assert first.comparison.difference == pytest.approx(np.expm1(np.mean(by_seed)))
    assert second.comparison.differences == pytest.approx([0.2, 0.205, 0.19])
    (both,) = interactions(crossing, found[0], METRIC)
    assert both.factor == "f0 · f1"
    assert both.change == "b against a, with y against with x"
    assert both.comparison.differences == pytest.approx([0.2, 0.21, 0.18])
    assert judge([both.comparison], Interval())[0].verdict == "differs"


def test_what_follows_from_a_factor_is_part_of_it() -> None:
    """kv_dim of attention=mla makes two values of attention; theta of rope, equal in all, is no factor."""
    runs = [
        [f"pos_encoding={encoding}", *attention]
        for encoding in ("rope", "alibi", "nope")
        for attention in (["attention=mha"], ["attention=mla", "kv_dim=16"], ["attention=mla", "kv_dim=32"])
    ]
    frame = table((overrides, seed, {METRIC: 100.0 + seed}) for overrides in runs for seed in (1, 2, 3))
    crossing = find_crossing(groups(frame))
    assert crossing is not None
    assert {name: sorted(values) for name, values in crossing.factors.items()} == {
        "pos_encoding": ["alibi", "nope", "rope"],
        "attention": ["mha", "mla · kv_dim 16", "mla · kv_dim 32"],
    }
    some = frame[[config["choices"]["pos_encoding"] != "alibi" for config in frame["config"]]]
    assert find_crossing(groups(some.reset_index(drop=True))) is not None
    assert find_crossing(groups(frame[frame.index < 9])) is None  # one factor
    star = table((one, 1, {METRIC: 1.0}) for one in ([], ["lr=0.1"], ["attention=mla"], ["pos_encoding=nope"]))
    assert find_crossing(groups(star)) is None


def test_combinations_that_are_missing_or_lack_seeds_are_left_out() -> None:
    values = {cell: 100 + np.arange(4.0) + 10 * (cell[0] == "b") for cell in cells("ab", "wxyz")}
    del values["b", "z"]
    values["a", "y"] = values["a", "y"][:3]
    found = crossed(values, "val/accuracy")
    crossing = find_crossing(found)
    assert crossing is not None
    first = main_effects(crossing, found[0], "val/accuracy")[0]
    assert (first.over, first.comparison.n, first.comparison.difference) == (3, 3, 10.0)


def test_effects_of_groups_with_missing_seeds_say_so_and_have_no_numbers() -> None:
    values = {cell: 100 + np.arange(4.0) for cell in cells("ab", "xyz")}
    values["b", "x"][2] = np.inf
    values["a", "z"] = values["a", "z"][:0]  # not measured
    found = crossed(values)
    crossing = find_crossing(found)
    assert crossing is not None
    every = [*main_effects(crossing, found[0], METRIC), *interactions(crossing, found[0], METRIC)]
    judged = judge([effect.comparison for effect in every], Interval())
    said = {effect.change: (effect.over, one.verdict) for effect, one in zip(every, judged, strict=True)}
    incomplete = "b x: 1 of 4 seeds not finite"
    assert said == {
        "b against a": (2, incomplete),
        "y against x": (2, incomplete),
        "b against a, with y against with x": (1, incomplete),
    }
    assert all(np.isnan(one.difference) for one in judged)


def test_effects_without_common_seeds_say_so_and_zeros_are_compared_by_differences() -> None:
    found = crossed({cell: np.arange(3.0) + 5 * (cell[0] == "b") for cell in cells("ab", "xy")})
    crossing = find_crossing(found)
    assert crossing is not None
    first = main_effects(crossing, found[0], METRIC)[0].comparison
    assert (first.scale, first.difference) == ("difference", 5.0)
    apart = crossed({cell: np.arange(3.0) for cell in cells("ab", "xy")})
    apart[0].frame["seed"] = range(12)
    crossing = find_crossing(apart)
    assert crossing is not None
    effects = main_effects(crossing, apart[0], METRIC)
    assert {one.verdict for one in judge([effect.comparison for effect in effects], Interval())} == {"no common seed"}


@pytest.mark.parametrize("effects", [main_effects, interactions])
def test_intervals_cover_the_truth(effects: Callable[..., list]) -> None:
    """400 studies of 2 x 3 groups and four seeds, with noise that differs by group and is partly that of the seed: the
    intervals of 95 % of the true effects hold the truth in 95 % of them."""
    random, truth, held, tries = np.random.default_rng(3), 0.07, 0, 0
    for _ in range(400):
        shared, own = 0.1 * random.normal(size=4), 0.02 * (1 + np.arange(6)) / 3
        level = {cell: truth * (cell[0] == "b") * (1 + (cell[1] == "y")) for cell in cells("ab", "xyz")}
        noise = dict(zip(level, (scale * random.normal(size=4) for scale in own), strict=True))
        found = crossed({cell: 0.5 + level[cell] + shared + noise[cell] for cell in level}, "val/accuracy")
        crossing = find_crossing(found)
        one = effects(crossing, found[0], "val/accuracy")[0].comparison
        right = {main_effects: truth * 4 / 3, interactions: truth}[effects]
        judged = judge([one], Interval())[0]
        held, tries = held + (judged.low <= right <= judged.high), tries + 1
    assert 0.925 < held / tries < 0.975
