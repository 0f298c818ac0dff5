from math import inf, isnan, log

import numpy as np
import pytest

from newllm.analysis.baselines import choose_baseline
from newllm.analysis.comparison import (
    Interval,
    Published,
    family_in_words,
    judge,
    make_rule,
    measure_all,
    presets,
    repeat_noise,
)
from newllm.analysis.metrics import lower_is_better, scale_of
from newllm.analysis.run_groups import groups
from newllm.errors import ConfigError
from tests.support.published_pairs import GEO_16K, HYBRID_16K, SEEDS
from tests.support.run_folders import table

METRIC = "extrapolation/ppl@16384"
CHOICES = {"rope": ["pos_encoding=rope"], "alibi": ["pos_encoding=alibi"], "nope": ["pos_encoding=nope"]}


def groups_with(metric=METRIC, **by_label):
    """Groups from label=[value of seed 1, of seed 2, …] or label={seed: value}."""
    runs = []
    for label, values in by_label.items():
        pairs = values.items() if isinstance(values, dict) else enumerate(values, 1)
        runs += [(CHOICES[label], seed, {metric: value}) for seed, value in pairs]
    return groups(table(runs))


def compare_with_rope(members, rule=None, metrics=(METRIC,), **options):
    return judge(measure_all(choose_baseline(members, "rope").pairs, metrics), rule or Interval(), **options)


def compared(rule=None, metric=METRIC, **by_label):
    """The comparison with rope; a list where there are several."""
    comparisons = compare_with_rope(groups_with(metric, **by_label), rule, [metric])
    return comparisons[0] if len(comparisons) == 1 else comparisons


def test_ten_published_pairs():
    seeds = list(SEEDS)
    one = compared(
        rope=dict(zip(seeds, GEO_16K, strict=True)), alibi=dict(zip(seeds[::-1], HYBRID_16K[::-1], strict=True))
    )
    assert (one.candidate, one.baseline, one.scale, one.lower_is_better) == ("alibi", "rope", "log", True)
    assert (one.n, one.unpaired, one.agree, one.seeds_needed) == (10, 0, 8, 34)
    assert one.t == pytest.approx(-1.57, abs=0.005)
    assert one.spread == pytest.approx(0.13, abs=0.005)
    assert (one.baseline_mean, one.candidate_mean) == (pytest.approx(18.798, abs=5e-4), pytest.approx(17.777, abs=5e-4))
    assert one.candidate_std == pytest.approx(2.824 * np.sqrt(10 / 9), abs=1e-3)  # published with ddof=0
    assert one.difference == pytest.approx(np.exp(np.log(HYBRID_16K / GEO_16K).mean()) - 1)
    assert one.low < one.difference < 0 < one.high
    assert (one.verdict, one.p_corrected) == ("inconclusive", one.p)
    assert "needs about 34 seeds" in one.why
    published = compared(Published(), rope=GEO_16K, alibi=HYBRID_16K)
    assert published.verdict == "inconclusive"
    assert "spread" in published.why


def test_better_and_worse():
    better, worse = compared(rope=[100, 110, 120], alibi=[90.1, 99, 107.9], nope=[130, 143.1, 156.2])
    assert better.family == worse.family == 2
    assert (better.candidate, better.verdict, better.agree) == ("alibi", "better", 3)
    assert (worse.candidate, worse.verdict) == ("nope", "worse")
    assert better.difference == pytest.approx(-0.1, abs=1e-3)
    accuracy = compared(metric="reversal/backward_accuracy", rope=[0.5, 0.52, 0.51], alibi=[0.6, 0.621, 0.61])
    assert (accuracy.verdict, accuracy.scale) == ("better", "difference")
    assert accuracy.difference == pytest.approx(0.1003, abs=1e-4)
    neither = compared(metric="qk/q_max", rope=[5.0, 5.1, 5.2], alibi=[7.0, 7.1, 7.21])
    assert (neither.verdict, neither.lower_is_better) == ("differs", None)


def test_all_comparisons_made_together_are_one_family():
    values = {"rope": [100, 110, 120], "alibi": [95, 104, 116], "nope": [130, 140, 158]}
    members = groups_with(**values)
    alone = compare_with_rope([group for group in members if group.label != "nope"])[0]
    together = compare_with_rope(members)
    assert [one.p_corrected for one in together] == pytest.approx([2 * one.p for one in together])
    assert alone.p_corrected == alone.p
    both = compare_with_rope(members, metrics=[METRIC, "data/val_tokens"])  # the same number in all runs: not tested
    assert [one.verdict for one in both[2:]] == ["zero spread"] * 2
    assert both[:2] == together
    words = family_in_words(both, Interval(), 0.95)
    assert "The 2 comparisons of this report that can be tested are one family" in words
    assert "95 % confidence (each alone with 97.5 %)" in words


@pytest.mark.parametrize("n", [3, 4, 5, 10])
def test_interval_verdict_p_and_seeds_needed_say_one_thing(n):
    """For every size of the effect, at one correction: "inconclusive" has 0 in its interval and asks for more seeds."""
    noise, shared = np.random.default_rng(n).normal(0, 0.02, (21, n)), np.linspace(100, 120, n)
    effects = {f"theta={100 + k}": 0.008 * (k - 10) for k in range(21)}
    runs = [(["theta=1e4"], seed, {METRIC: value}) for seed, value in enumerate(shared)]
    for (choice, effect), row in zip(effects.items(), noise, strict=True):
        runs += [
            ([choice], seed, {METRIC: v * np.exp(effect + e)})
            for seed, (v, e) in enumerate(zip(shared, row, strict=True))
        ]
    members = groups(table(runs))
    comparisons = judge(measure_all(choose_baseline(members, "theta 10000").pairs, [METRIC]), Interval())
    verdicts = {one.verdict for one in comparisons}
    assert verdicts <= {"better", "worse", "inconclusive"}
    assert n < 5 or len(verdicts) == 3
    for one in comparisons:
        real = one.verdict != "inconclusive"
        assert real == one.excludes_zero == (one.p_corrected < 0.05) == (one.seeds_needed is None)
        assert real or one.seeds_needed > n
        assert not real or (one.verdict == "better") == (one.high < 0)


@pytest.mark.parametrize(
    ("rope", "alibi", "words"),
    [
        ([100, 110, 120, 130], [90, float("nan"), 108, 117.1], "1 of 4 seeds not measured"),
        ([100, 110, 120, 130], [90, inf, inf, 117.1], "2 of 4 seeds not finite"),
        ([100, inf, 120, 130], [90, 99, 108, 117.1], "baseline: 1 of 4 seeds not finite"),
        ([100, 110, 120, 130], [inf] * 4, "4 of 4 seeds not finite"),
    ],
)
@pytest.mark.parametrize("rule", [Interval(), Published()])
def test_the_seeds_that_went_well_say_nothing_about_a_group(rule, rope, alibi, words):
    one, other = compared(rule, rope=rope, alibi=alibi, nope=[130, 143.1, 156.2, 169])
    assert one.verdict == one.incomplete == words
    assert isnan(one.difference)
    assert all(isnan(value) for value in (one.low, one.high, one.p, one.p_corrected, one.candidate_mean))
    assert one.seeds_needed is None
    assert other.family == (0 if words.startswith("baseline") else 1)


def test_one_seed_never_gives_a_verdict():
    for rule in (Interval(least_seeds=2), Published(least_seeds=2)):
        one = compared(rule, rope=[100], alibi=[1])
        assert (one.verdict, one.n) == ("one seed", 1)
        assert all(isnan(value) for value in (one.low, one.high, one.p, one.p_corrected, one.candidate_std))
        assert one.difference == pytest.approx(-0.99)
    with pytest.raises(ConfigError, match="least_seeds"):
        Interval(least_seeds=1)


def test_unpaired_seeds_are_left_out_and_counted():
    one = compared(rope={1: 100, 2: 110, 3: 120, 4: 1e9}, alibi={1: 90, 2: 99, 3: 108.5, 8: 1, 9: 1})
    assert (one.n, one.unpaired) == (3, 3)
    assert (one.baseline_mean, one.candidate_mean) == (110, pytest.approx(99.17, abs=0.01))
    assert compared(rope={1: 100, 2: 110}, alibi={2: 90, 4: 99}).verdict == "one common seed"
    none = compared(rope={1: 100, 2: 110}, alibi={3: 90, 4: 99})
    assert (none.n, none.unpaired, none.verdict) == (0, 4, "no common seed")
    assert none.why == "no seed is in both groups"


def test_two_seeds_are_too_few_for_the_shipped_rules():
    for preset in presets():
        one = compared(make_rule(preset), rope=[100, 100.001], alibi=[50, 50])
        assert (one.verdict, one.why) == ("too few seeds", "2 paired seeds, and the rule asks for 3")
        assert isnan(one.low)


@pytest.mark.parametrize(
    ("metric", "rope", "alibi", "difference"),
    [
        ("kv_cache/bytes_per_token", [1024, 1024, 1024], [128, 128, 128], -0.875),
        ("kv_cache/bytes_per_token", [1024, 1024, 1024], [1024, 1024, 1024], 0.0),
        (METRIC, [100, 110, 120, 137.7], [98, 107.8, 117.6, 0.98 * 137.7], -0.02),  # equal but for rounding
        ("val/loss", [4.1, 4.2, 4.37], [4.2, 4.3, 4.47], 0.1),
    ],
)
@pytest.mark.parametrize("rule", [Interval(), Published()])
def test_pairs_that_all_differ_alike_are_not_tested(metric, rope, alibi, difference, rule):
    one = compared(rule, metric=metric, rope=rope, alibi=alibi)
    assert (one.verdict, one.spread, one.family) == ("zero spread", 0.0, 0)
    assert one.difference == pytest.approx(difference)
    assert all(isnan(value) for value in (one.t, one.p, one.p_corrected, one.low))
    assert "no noise to test it against" in one.why


def test_tiny_values_have_a_spread():
    one = compared(metric="val/loss", rope=[1e-15, 2e-15, 3e-15], alibi=[2e-15, 4e-15, 7e-15])
    assert one.family == 1
    assert one.spread == pytest.approx(1.5275e-15, rel=1e-4)


def test_the_published_rule():
    """Mean better, spread small against the gap, at least two thirds of the seeds."""
    rule = make_rule("published")
    assert compared(rule, rope=[100, 101, 102], alibi=[90, 91, 103]).verdict == "inconclusive"  # wide
    two_of_three = compared(rule, rope=[100, 101, 99], alibi=[95, 95, 99.5])
    assert (two_of_three.agree, two_of_three.verdict) == (2, "better")
    assert compared(rope=[100, 101, 99], alibi=[95, 95, 99.5]).verdict == "inconclusive"  # by the default rule
    half = compared(make_rule("published", spread=10.0), rope=[100, 101, 99, 100], alibi=[99, 100, 100.2, 100.2])
    assert (half.agree, half.verdict) == (2, "inconclusive")
    assert "only 2 of 4 seeds agree" in half.why
    assert half.seeds_needed is None


@pytest.mark.parametrize(
    ("comparisons", "correlation", "rate"), [(1, 0.5, 0.115), (8, 0.5, 0.45), (1, 0, 0.21), (8, 0, 0.69)]
)
def test_the_published_rule_says_how_often_it_is_wrong(comparisons, correlation, rate):
    assert Published().false_rate([3] * comparisons, correlation) == pytest.approx(rate, abs=0.015)


def test_its_false_verdicts_stand_beside_it():
    values = {"rope": [100, 101, 102], "alibi": [90, 91, 103]}
    words = family_in_words(compare_with_rope(groups_with(**values), Published()), Published(), 0.95)
    assert "this rule calls this one comparison (3 seeds) better or worse in 21." in words
    assert "0.05" in family_in_words(compare_with_rope(groups_with(**values)), Interval(), 0.95)


def test_rules_are_options_in_yaml():
    assert presets() == ["interval", "published"]
    strict = make_rule("interval", least_seeds=4)
    values = {"rope": [100, 110, 120], "alibi": [92, 99, 110]}
    assert compared(**values).verdict == "better"
    assert compared(strict, **values).verdict == "too few seeds"
    assert "at least 4 paired seeds" in strict.words
    assert compare_with_rope(groups_with(**values), confidence=0.999)[0].verdict == "inconclusive"
    assert "67 %" in make_rule("published").words


def test_the_bootstrap_interval():
    few = groups_with(rope=GEO_16K, alibi=HYBRID_16K)
    with pytest.raises(ConfigError, match=r"needs 20 paired seeds, and alibi has 10.*83 % with 5"):
        compare_with_rope(few, interval="bootstrap")
    twice = {name: [*values, *values * 1.01] for name, values in (("rope", GEO_16K), ("alibi", HYBRID_16K))}
    members = groups_with(**twice)
    student = compare_with_rope(members)[0]
    boot = compare_with_rope(members, interval="bootstrap", confidence=0.95)[0]
    assert (boot.low, boot.high) != (student.low, student.high)
    assert boot.low < boot.difference < boot.high
    assert boot.p == student.p
    assert boot.excludes_zero == (boot.verdict == "better")
    assert compare_with_rope(members, confidence=0.5)[0].high < student.high


def test_values_without_a_logarithm_are_compared_as_they_are():
    one = compared(rope=[0.0, 1.0, 2.0], alibi=[1.0, 2.0, 3.5])
    assert (one.scale, one.difference) == ("difference", pytest.approx(3.5 / 3))


def test_noise_of_repeats():
    runs = [([], 42, {METRIC: value}) for value in (16.459, 19.609, 18.683, 20.217)]
    runs += [([], 7, {METRIC: 15.0}), (["pos_encoding=alibi"], 42, {METRIC: 10.0})]
    noise = repeat_noise(table(runs), METRIC)
    assert noise.std == pytest.approx(np.std([log(v) for v in (16.459, 19.609, 18.683, 20.217)], ddof=1))
    assert (noise.groups, noise.values) == (1, 4)
    assert isnan(repeat_noise(table(runs), "no/metric").std)


@pytest.mark.parametrize(
    ("metric", "scale", "lower"),
    [
        ("val/ppl", "log", True),
        ("val/best_ppl", "log", True),
        ("val/ppl_by_position/0-16", "log", True),
        ("extrapolation/ppl@4096", "log", True),
        ("val/loss", "difference", True),
        ("val/bits_per_byte", "difference", True),
        ("baseline/trigram_ppl", "log", None),
        ("reversal/backward_ppl", "log", True),
        ("reversal/ratio", "log", False),
        ("reversal/gap", "difference", True),
        ("reversal/forward_margin", "difference", False),
        ("reversal/backward_accuracy", "difference", False),
        ("kv_cache/bytes_per_token", "log", True),
        ("kv_cache/reduction", "difference", False),
        ("speed/train_tokens_per_second", "log", False),
        ("speed/wall_seconds", "log", True),
        ("memory/peak_bytes", "log", True),
        ("params/total", "log", None),
        ("data/bytes_per_token", "log", None),
        ("qk/q_max", "difference", None),
        ("rank/effective_rank", "difference", None),
        ("val/best_epoch", "difference", None),
    ],
)
def test_scale_and_direction_of_metrics(metric, scale, lower):
    assert (scale_of(metric), lower_is_better(metric)) == (scale, lower)
