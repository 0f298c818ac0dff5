"""Statistics of small samples: paired differences, intervals, corrections, power. Plain functions on numbers.

Nothing here warns or raises for small or odd samples: what a sample cannot tell is NaN (None for a number of seeds).
Values that are not finite are left out first.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import copysign, inf, isfinite, isnan, nan, sqrt
from typing import Literal

import numpy as np

IntervalKind = Literal["t", "bootstrap"]
Numbers = Sequence[float] | np.ndarray

RESAMPLES = 10_000
BOOTSTRAP_SEED = 0
MOST_SEEDS = 2**26  # that seeds_needed looks at


@dataclass(frozen=True)
class Sample:
    """What a sample says about its mean.

    n: finite values. std: sample standard deviation (ddof=1), NaN for one value. low, high: interval of the mean.
    t, p: two-sided one-sample t-test of mean 0 with n - 1 degrees of freedom. agree: values with the sign of the mean.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float
    t: float
    p: float
    agree: int


@np.errstate(over="ignore", invalid="ignore")
def describe(values: Numbers, confidence: float = 0.95, interval: IntervalKind = "t") -> Sample:
    """Mean, spread, interval and t-test of `values`; for differences by seed, this is the paired t-test.

    One value has neither interval nor test. Values that are all equal have an interval of zero width, and p = 0, or
    p = 1 if all are zero.
    """
    from scipy.special import stdtr, stdtrit

    x = _finite(values)
    n = len(x)
    mean = float(x.mean()) if n else nan
    std = sample_std(x)
    agree = int((np.sign(x) == np.sign(mean)).sum()) if n else 0
    if n < 2:
        return Sample(n, mean, std, nan, nan, nan, nan, agree)
    if std == 0:
        t, p = (copysign(inf, mean), 0.0) if mean else (nan, 1.0)
    else:
        t = mean / (std / sqrt(n))
        p = float(2 * stdtr(n - 1, -abs(t)))
    if interval == "bootstrap":
        low, high = bootstrap_interval(x, confidence)
    else:
        half = float(stdtrit(n - 1, (1 + confidence) / 2)) * std / sqrt(n)
        low, high = mean - half, mean + half
    return Sample(n, mean, std, low, high, t, p, agree)


def sample_std(values: Numbers) -> float:
    """Sample standard deviation (ddof=1): NaN for one value, exactly 0 where all values are equal."""
    x = _finite(values)
    if len(x) < 2:
        return nan
    return 0.0 if np.ptp(x) <= 8 * np.finfo(float).eps * np.abs(x).max() else float(x.std(ddof=1))


def bootstrap_interval(
    values: Numbers, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = BOOTSTRAP_SEED
) -> tuple[float, float]:
    """Interval of the mean by the bias-corrected and accelerated bootstrap (BCa; Efron 1987), repeatable by `seed`.

    With very few values it is too narrow: three values have only ten different resamples.
    """
    from scipy.special import ndtr, ndtri

    x = _finite(values)
    n = len(x)
    if n < 2:
        return nan, nan
    if sample_std(x) == 0:
        return float(x.mean()), float(x.mean())
    generator = np.random.Generator(np.random.PCG64(seed))
    means = x[generator.integers(0, n, (resamples, n))].mean(axis=1)
    below = ((means < x.mean()).mean() + (means <= x.mean()).mean()) / 2  # ties count half
    bias = float(ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples)))
    without = (x.sum() - x) / (n - 1)  # means with one value left out
    spread = without.mean() - without
    acceleration = float((spread**3).sum() / (6 * (spread**2).sum() ** 1.5))
    ends = ndtri(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
    shifted = ndtr(bias + (bias + ends) / (1 - acceleration * (bias + ends)))
    low, high = np.quantile(means, shifted)
    return float(low), float(high)


def holm(p_values: Numbers) -> np.ndarray:
    """p-values corrected for their number by the step-down method (Holm 1979), in the order given.

    A NaN stays NaN and does not count as a comparison.
    """
    p = np.asarray(p_values, dtype=float)
    corrected = np.full(p.shape, nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return corrected


def seeds_needed(mean: float, std: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """The fewest seeds with which a two-sided paired t-test finds this effect with probability `power`; at least 2.

    mean, std: of the differences by seed, taken as the truth. Exact, by the noncentral t distribution. None where the
    effect is zero or its spread unknown, and where more than MOST_SEEDS would be needed.
    """
    if not (isfinite(mean) and isfinite(std)) or mean == 0:
        return None
    if std == 0:
        return 2
    numbers = range(2, MOST_SEEDS + 1)
    place = bisect_left(numbers, power, key=lambda n: power_of(abs(mean) / std, n, alpha))  # power grows with n
    return numbers[place] if place < len(numbers) else None


def power_of(effect: float, n: int, alpha: float = 0.05) -> float:
    """Probability that a two-sided paired t-test of n seeds finds the effect |mean| / std; NaN for n < 2."""
    from scipy.special import nctdtr, stdtrit

    if n < 2:
        return nan
    critical = float(stdtrit(n - 1, 1 - alpha / 2))
    shift = effect * sqrt(n)
    wrong_way = float(nctdtr(n - 1, shift, -critical))  # NaN where it is too small to be computed
    return 1.0 - float(nctdtr(n - 1, shift, critical)) + (0.0 if isnan(wrong_way) else wrong_way)


@dataclass(frozen=True)
class Repeats:
    """Spread of what should be equal. std: pooled over the groups, sqrt(sum of squares / degrees of freedom).

    groups: groups with at least two values. values: their values. freedom: values - groups.
    """

    std: float
    groups: int
    values: int
    freedom: int


def repeat_spread(groups: Iterable[Numbers]) -> Repeats:
    """Pooled within-group standard deviation; groups of fewer than two values are left out. NaN without any."""
    kept = [x for group in groups if len(x := _finite(group)) > 1]
    freedom = sum(len(x) - 1 for x in kept)
    squares = sum(sample_std(x) ** 2 * (len(x) - 1) for x in kept)
    return Repeats(sqrt(squares / freedom) if freedom else nan, len(kept), sum(map(len, kept)), freedom)


def _finite(values: Numbers) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    return x[np.isfinite(x)]
