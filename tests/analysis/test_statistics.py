"""The statistics against scipy and against published tables by seed (github.com/misaya-yang/hybrid-rope)."""

import warnings
from math import exp, inf, isnan, log, sqrt

import numpy as np
import pytest
from scipy import integrate, stats

from newllm.analysis.statistics import (
    bonferroni,
    bootstrap_interval,
    describe,
    effect_shown,
    interval_of,
    power_of,
    repeat_spread,
    sample_std,
    seeds_needed,
)
from tests.support.published_pairs import GEO_2K, GEO_16K, HYBRID_2K, HYBRID_16K

# Three designs on three machines at 16,384 tokens; columns are the seeds 42, 123, 7.
GEO_3 = [[18.224, 19.138, 17.258], [16.569, 20.490, 21.099], [15.970, 19.295, 19.559]]
HYBRID_3 = [[16.847, 17.408, 17.716], [15.454, 17.474, 19.284], [14.772, 17.846, 18.090]]
ANCHPOLY_3 = [[19.609, 17.568, 20.223], [18.683, 17.774, 17.378], [20.217, 18.586, 17.681]]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_ten_published_seeds():
    assert describe(HYBRID_2K - GEO_2K).t == pytest.approx(-1.87, abs=0.005)
    on_ppl = describe(HYBRID_16K - GEO_16K)
    assert on_ppl.t == pytest.approx(-1.38, abs=0.005)
    assert (on_ppl.n, on_ppl.agree) == (10, 8)
    on_log = describe(np.log(HYBRID_16K) - np.log(GEO_16K))
    assert on_log.t == pytest.approx(-1.57, abs=0.005)
    assert on_log.std == pytest.approx(0.13, abs=0.005)


@pytest.mark.parametrize("values", [HYBRID_16K - GEO_16K, np.log(HYBRID_2K / GEO_2K), np.array([0.3, -0.1])])
def test_the_paired_test_and_its_interval_are_those_of_scipy(values):
    sample, theirs = describe(values), stats.ttest_1samp(values, 0)
    interval = theirs.confidence_interval(0.9)
    assert (sample.t, sample.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-12)
    assert interval_of(values, 0.9) == pytest.approx((interval.low, interval.high), rel=1e-12)


def test_three_seeds_on_three_machines():
    """Published: means and population std by machine; hybrid wins 8 of 9 (mean -7.4 %), anchpoly 5 of 9 (+1.3 %)."""
    means = [[np.mean(row) for row in table] for table in (GEO_3, HYBRID_3, ANCHPOLY_3)]
    assert np.round(means, 3).tolist() == [[18.207, 19.386, 18.275], [17.324, 17.404, 16.903], [19.133, 17.945, 18.828]]
    population = [sample_std(row) * sqrt(2 / 3) for row in GEO_3]
    assert population == pytest.approx([0.768, 2.007, 1.633], abs=6e-4)
    for table, wins, mean in ((HYBRID_3, 8, -0.074), (ANCHPOLY_3, 5, 0.013)):
        relative = (np.array(table) / np.array(GEO_3) - 1).ravel()
        assert (relative < 0).sum() == wins
        assert describe(relative).mean == pytest.approx(mean, abs=6e-4)
    assert describe(np.log(np.array(HYBRID_3) / np.array(GEO_3)).ravel()).agree == 8


@pytest.mark.parametrize(
    ("machines", "published", "values"),
    [([*GEO_3, GEO_16K[:3]], 0.060, 12), ([*HYBRID_3, HYBRID_16K[:3]], 0.051, 12), (ANCHPOLY_3, 0.056, 9)],
    ids=["geo_500k", "hybrid_a0.2_t100k", "anchpoly_p3.9_omf0.3_t500k"],
)
def test_noise_of_published_repeats(machines, published, values):
    """One seed run on three machines (and in the ten-seed run): published SD of ln PPL within a seed."""
    within = repeat_spread(np.log(np.array(machines)).T)
    assert within.std == pytest.approx(published, abs=5e-4)
    assert (within.groups, within.values) == (3, values)


def test_single_runs_have_no_noise():
    alone = repeat_spread([[1.0], [2.0], [float("nan"), 3.0]])
    assert isnan(alone.std)
    assert (alone.groups, alone.values) == (0, 0)


def test_seeds_needed_for_the_published_effect():
    """With SD 0.13 about 32 by the normal approximation, as published; 34 by the exact t-test."""
    sample = describe(np.log(HYBRID_16K) - np.log(GEO_16K))
    quick = ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * sample.std / sample.mean) ** 2
    assert round(quick) == 32
    assert seeds_needed(sample.mean, sample.std) == 34


@pytest.mark.parametrize(("effect", "n"), [(0.2, 12), (0.5, 34), (1.0, 10), (2.5, 4), (6.9, 2)])
def test_power_is_that_of_the_noncentral_t(effect, n):
    """Against the definition: the integral of the normal distribution over the distribution of the variance."""
    freedom, shift = n - 1, effect * sqrt(n)
    critical = stats.t.ppf(0.975, freedom)

    def missed(v):
        half = critical * sqrt(v / freedom)
        return (stats.norm.cdf(half - shift) - stats.norm.cdf(-half - shift)) * stats.chi2.pdf(v, freedom)

    exact = 1 - integrate.quad(missed, 0, 1e-3)[0] - integrate.quad(missed, 1e-3, 200, limit=200)[0]
    assert power_of(effect, n) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("effect", [0.05, 0.3, 0.5, 1.0, 3.0, 5.0, 6.0, 10.0, 20.0])
def test_seeds_needed_is_the_least_number_with_that_power(effect):
    n = seeds_needed(-effect, 1.0)
    assert power_of(effect, n) >= 0.8
    assert n == 2 or power_of(effect, n - 1) < 0.8


def test_seeds_needed_where_there_is_no_answer():
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1.0, float("nan")) is None
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(0.1, 0.0) is None
    assert seeds_needed(1e5, 1.0) == 2


@pytest.mark.parametrize(("m", "n"), [(1, 3), (8, 5), (72, 5), (2, 30)])
def test_a_corrected_interval_leaves_out_zero_just_where_the_corrected_p_is_small(m, n):
    x = np.random.default_rng(m).normal(size=(200, n)) + np.linspace(0, 20, 200)[:, None]
    each = bonferroni(0.95, m)
    assert each == pytest.approx(1 - 0.05 / m)
    real = [(low > 0 or high < 0) for low, high in (interval_of(values, each) for values in x)]
    assert real == [m * describe(values).p < 0.05 for values in x]
    assert {True, False} == {*real}


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8, 0.05 / 72, 1e-6])
def test_the_smallest_effect_shown_is_the_one_that_needs_these_seeds(alpha):
    for n in (2, 3, 5, 10, 100):
        effect = effect_shown(n, alpha=alpha)
        assert seeds_needed(1.001 * effect, 1.0, alpha=alpha) == n
        assert seeds_needed(0.999 * effect, 1.0, alpha=alpha) == n + 1
    assert isnan(effect_shown(1))


def test_bootstrap_interval_is_that_of_scipy():
    values = np.log(HYBRID_16K / GEO_16K)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=100_000, method="BCa", rng=1).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    skewed = np.array([0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.4, 3.0])
    low, high = bootstrap_interval(skewed)
    assert high - skewed.mean() > skewed.mean() - low  # unlike Student's, it leans to the long side
    assert interval_of(values, 0.95, "bootstrap") == bootstrap_interval(values)
    wide = bootstrap_interval(values, bonferroni(0.95, 72))
    assert wide[0] < bootstrap_interval(values)[0]


def test_small_and_odd_samples_are_defined_and_silent():
    empty, one = describe([]), describe([0.5])
    assert empty.n == 0
    assert all(isnan(value) for value in (empty.mean, empty.std, empty.p, one.std, one.t, one.p))
    assert all(
        isnan(end) for values in ([], [0.5]) for kind in ("t", "bootstrap") for end in interval_of(values, 0.9, kind)
    )
    assert (one.n, one.mean, one.agree) == (1, 0.5, 1)
    third = log(1.1)  # equal up to rounding
    equal = describe([third, log(1.2) - log(1.2 / 1.1), third])
    assert equal.std == 0.0
    assert isnan(equal.t)
    assert isnan(equal.p)
    assert interval_of([third] * 3, 0.9) == pytest.approx((third, third))
    zeros = describe([0.0, 0.0, 0.0])
    assert (zeros.std, zeros.agree) == (0.0, 3)
    assert interval_of([0.0, 0.0, 0.0], 0.95, "bootstrap") == (0.0, 0.0)
    assert sample_std([1e300, -1e300]) == inf
    with_gaps = describe([1.0, float("nan"), 2.0, inf, 4.0])
    assert (with_gaps.n, with_gaps.mean) == (3, pytest.approx(7 / 3))
    low, high = bootstrap_interval([1.0, 2.0])
    assert 1.0 <= low <= 1.5 <= high <= 2.0
    assert describe([1e308, 1e308]).n == 2
    assert exp(describe(np.log([2.0, 8.0])).mean) == pytest.approx(4.0)
