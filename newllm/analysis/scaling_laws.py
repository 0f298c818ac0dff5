"""Scaling laws: perplexity as a power of a size, fitted by ordinary least squares of logarithms; and as a power above a
floor, fitted by least squares of the perplexity itself.
"""

from dataclasses import dataclass, field
from math import exp, inf, log, nan

import numpy as np
import pandas as pd
from scipy import optimize, stats

from newllm.analysis.comparable import split_comparable, tokenizer_of
from newllm.analysis.frame import metric_names
from newllm.analysis.run_groups import Group, groups, lost_runs, value_of
from newllm.analysis.statistics import Numbers
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean

LEAST_SIZES = 3  # any two points lie on a line
LEAST_OF_SATURATION = 4  # any three points lie on a curve with three parameters

_BUDGET = ("data.samples", "data.tokens", "data.documents", "data.val_fraction")
# The settings that change a size: points that differ in them are on one curve.
_SETTINGS_OF_SIZE = {
    "data/": (*_BUDGET, "trainer.tokens"),
    "train/": (*_BUDGET, "trainer.tokens", "trainer.epochs"),
    "params/": ("model.hidden_size", "model.num_layers", "model.heads", "model.mlp_size", "attention.kv_heads",
                "model.layers", "model.context_dim"),
    "kv_cache/": ("attention.kv_dim", "attention.kv_heads", "attention.rope_dim"),
}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """ln y = intercept + slope ln x, by ordinary least squares.

    slope: the exponent α of y = A x^α. low, high: its interval by Student's t with n - 2 degrees of freedom (NaN for
    two points). factor: A = exp(intercept). r2: the squared correlation of ln x and ln y.
    """

    slope: float
    intercept: float
    r2: float
    low: float
    high: float
    n: int
    confidence: float

    @property
    def factor(self) -> float:
        return exp(self.intercept)


@dataclass(frozen=True)
class Law:
    """A scaling law of runs that are equal but for seed and size.

    label: of the curve. size, metric: names of x and y. points: one (x, y) per size, y the geometric mean over its
    seeds. runs: (x, y) of every run, to which the law is fitted. note: a caveat, "" if there is none. curve: the runs
    themselves.
    """

    label: str
    size: str
    metric: str
    fit: Fit
    points: tuple[tuple[float, float], ...]
    runs: tuple[tuple[float, float], ...]
    misfit: float
    note: str
    curve: Group = field(repr=False)

    def at(self, size: float, metric: str) -> np.ndarray:
        """Another metric of the runs of that size, NaN where a run has none."""
        return self.curve.values(metric)[_sizes(self.curve, self.size) == size]


@dataclass(frozen=True)
class Saturation:
    """y = floor + factor x^slope, slope below 0, by least squares of y.

    r2: share of the variance of y that it explains. aic, aic_power: Akaike's criterion of this curve and of y = A x^α,
    fitted by least squares of y too; the lower one is the better choice. All NaN without four sizes.
    """

    floor: float
    factor: float
    slope: float
    r2: float
    aic: float
    aic_power: float
    n: int

    @property
    def preferred(self) -> bool:
        """Is it the better choice, by AIC?"""
        return self.aic < self.aic_power


def fit(x: Numbers, y: Numbers, confidence: float = 0.95) -> Fit:
    """Least squares of ln y on ln x over the pairs of positive, finite numbers; all NaN without two sizes."""
    a, b = map(np.log, _positive(x, y))
    n = len(a)
    if n < 2 or np.ptp(a) == 0:
        return Fit(nan, nan, nan, nan, nan, n, confidence)
    line = stats.linregress(a, b)
    slope, r2 = float(line.slope), float(line.rvalue**2) if np.ptp(b) else 1.0
    half = float(stats.t.ppf((1 + confidence) / 2, n - 2) * line.stderr) if n > 2 else nan
    return Fit(slope, float(line.intercept), r2, slope - half, slope + half, n, confidence)


def lack_of_fit(x: Numbers, y: Numbers) -> float:
    """p of the F-test that the means of ln y at each x lie on one line in ln x, judged by the scatter around them.

    For pairs of positive numbers. NaN with fewer than three sizes, or without scatter: with one run a size, what strays
    from the line can't be told from chance. Source: Draper and Smith, Applied Regression Analysis.
    """
    a, b = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    sizes, place, counts = np.unique(a, return_inverse=True, return_counts=True)
    beyond, within = len(sizes) - 2, len(a) - len(sizes)
    if beyond < 1 or within < 1:
        return nan
    means = np.bincount(place, b) / counts
    line = np.polynomial.Polynomial.fit(a, b, 1)
    pure = float(((b - means[place]) ** 2).sum()) / within
    strayed = float((counts * (means - line(sizes)) ** 2).sum()) / beyond
    if pure < 1e-24:  # rounding
        return nan
    return float(stats.f.sf(strayed / pure, beyond, within))


def saturating(x: Numbers, y: Numbers) -> Saturation:
    """Least squares of y = floor + factor x^slope over the pairs of positive, finite numbers, 0 <= floor.

    For each slope the best floor and factor follow linearly; the slope is then searched between -4 and -0.02.
    Published fits of this curve are in references/scaling.csv.
    """
    a, b = _positive(x, y)
    n = len(a)
    if len(np.unique(a)) < LEAST_OF_SATURATION:
        return Saturation(nan, nan, nan, nan, nan, nan, n)
    unit = float(np.exp(np.log(a).mean()))  # powers of sizes near 1 stay in range
    u = a / unit
    floor, factor, slope, rss = _least_squares(u, b, floor=True)
    *_, rss_power = _least_squares(u, b, floor=False)
    total = float(((b - b.mean()) ** 2).sum())
    r2 = 1 - rss / total if total else 1.0
    return Saturation(floor, factor * unit**-slope, slope, r2, aic(rss, n, 3), aic(rss_power, n, 2), n)


def aic(rss: float, n: int, parameters: int) -> float:
    """Akaike's information criterion n ln(RSS / n) + 2 k of a least-squares fit, but for a constant."""
    return n * log(rss / n) + 2 * parameters if rss > 0 else -inf


def _least_squares(u: np.ndarray, y: np.ndarray, floor: bool) -> tuple[float, float, float, float]:
    """(floor, factor, slope, sum of squares) of the best y = floor + factor u^slope; without `floor` it is 0."""

    def fit_linear(steepness: float) -> tuple[float, float, float]:
        """(floor, factor, sum of squares) for a slope of -steepness."""
        power = u**-steepness
        bottom, factor = 0.0, float(power @ y / (power @ power))
        if floor:
            centred = power - power.mean()
            free_factor = float(centred @ y / (centred @ centred))
            free_floor = float(y.mean() - free_factor * power.mean())
            if free_floor > 0:
                bottom, factor = free_floor, free_factor
        return bottom, factor, float(((y - bottom - factor * power) ** 2).sum())

    grid = np.geomspace(0.02, 4, 60)
    best = int(np.argmin([fit_linear(steepness)[2] for steepness in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    search = optimize.minimize_scalar(
        lambda s: fit_linear(s)[2], bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    bottom, factor, rss = fit_linear(float(search.x))
    return bottom, factor, -float(search.x), rss


def laws(
    frame: pd.DataFrame, size: str = "data/train_tokens", metric: str = "val/ppl", confidence: float = 0.95
) -> list[Law]:
    """The scaling laws in the runs of `frame`: one per set of runs that differ only in seed and size, where
    there are at least three sizes.

    size: a metric (``data/train_tokens``, ``params/total``), an axis (``samples``) or a setting. Settings that
    change that size may differ between the points of a curve, and so may the validation set; the law's `note` says so
    where it does, and how many runs have no finite numbers. Runs with different tokenizers are never on one curve.

    Raises ConfigError for a size or metric that no run has.
    """
    done = frame[frame["state"] == "done"]
    if metric not in done:
        raise ConfigError(f"{metric} is not a metric of these runs; {did_you_mean(metric, metric_names(done))}.")
    free, every = _settings_of_size(done, size), []
    runs = frame[(frame["state"] == "done") | lost_runs(frame)]
    for _, rows in runs.groupby(runs["config"].map(tokenizer_of), sort=False):
        for curve in groups(rows, without=free):
            if not len(curve.positions):
                continue
            x, y = _positive(_sizes(curve, size), curve.values(metric))
            sizes = np.unique(x)
            if len(sizes) < LEAST_SIZES:
                continue
            points = tuple((float(value), float(np.exp(np.log(y[x == value]).mean()))) for value in sizes)
            fitted_runs = tuple(sorted(zip(x.tolist(), y.tolist(), strict=True)))
            parts, lost = split_comparable(curve.runs), len(curve.lost) + len(curve.positions) - len(y)
            notes = [f"The sizes are not validated on the same text ({parts[0].title}; …)."] if len(parts) > 1 else []
            if lost:
                notes.append(f"{lost} of {len(y) + lost} runs have no finite numbers: the law is that of the others.")
            fitted, misfit = fit(x, y, confidence), lack_of_fit(x, y)
            every.append(Law(curve.label, size, metric, fitted, points, fitted_runs, misfit, " ".join(notes), curve))
    return every


def _settings_of_size(frame: pd.DataFrame, size: str) -> tuple[str, ...]:
    """The settings that may differ between the points of a curve over `size`: those that change it, and itself."""
    if "/" in size:
        if size not in frame:
            raise ConfigError(f"size={size} is not a metric of these runs; {did_you_mean(size, metric_names(frame))}.")
        return next((keys for prefix, keys in _SETTINGS_OF_SIZE.items() if size.startswith(prefix)), ())
    if size not in frame and all(value_of(config, size) is None for config in frame["config"]):
        raise ConfigError(f"size={size} is not a metric, axis or setting of these runs; type size=data/train_tokens.")
    return (size, *(f"{node}.{size}" for node in ("data", "model", "trainer", "optim", "attention", "pos_encoding")))


def _sizes(curve: Group, size: str) -> np.ndarray:
    if "/" in size:
        return curve.values(size)
    runs = curve.runs
    values = runs[size] if size in runs else [value_of(config, size) for config in runs["config"]]
    return np.array([float(v) if isinstance(v, int | float) and not isinstance(v, bool) else nan for v in values])


def _positive(x: Numbers, y: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """The pairs in which both numbers are positive and finite."""
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    kept = np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)
    return a[kept], b[kept]
