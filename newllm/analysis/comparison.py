"""Each group against a baseline: differences paired by seed, their interval, test and verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import expm1, inf, nan
from typing import TYPE_CHECKING

import numpy as np

from newllm.analysis import statistics
from newllm.analysis.grouping import Group, find
from newllm.analysis.metrics import Scale, lower_is_better, scale_of
from newllm.analysis.statistics import IntervalKind
from newllm.analysis.verdict import Rule, Verdict, judge

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison:
    """A group against the baseline on one metric, over the seeds that both have.

    candidate, baseline: labels.
    scale: "log": `difference` is the ratio of the geometric means - 1 (-0.05: five percent lower), computed from
        differences of logarithms; "difference": it is the mean difference in the metric's own unit.
    lower_is_better: None for a metric without a good direction.
    n: paired seeds. unpaired: seeds that only one of the two has, which are left out.
    candidate_mean, …, baseline_std: arithmetic means and sample standard deviations (ddof=1) over the paired seeds.
    difference, low, high: with its interval; NaN, not shown, for one seed.
    spread: sample standard deviation of the paired differences, on the scale (of logarithms for "log").
    t, p: paired t-test on the scale, n - 1 degrees of freedom. p_holm: corrected for all comparisons made together.
    agree: seeds whose difference has the sign of the mean difference.
    seeds_needed: for 80 % power at the observed effect; None where that cannot be said.
    verdict, why: by the rule.
    """

    candidate: str
    baseline: str
    metric: str
    scale: Scale
    lower_is_better: bool | None
    n: int
    unpaired: int
    candidate_mean: float
    candidate_std: float
    baseline_mean: float
    baseline_std: float
    difference: float
    low: float
    high: float
    spread: float
    t: float
    p: float
    p_holm: float
    agree: int
    seeds_needed: int | None
    verdict: Verdict
    why: str


def compare(
    among: Sequence[Group],
    baseline: Group | str,
    metrics: str | Sequence[str],
    rule: Rule,
    confidence: float = 0.95,
    interval: IntervalKind = "t",
) -> list[Comparison]:
    """Every other group against `baseline` (a group or what `grouping.find` understands), on every metric.

    Holm's correction runs over all of these together. A metric that one of the two groups lacks is passed over.
    """
    base = find(among, baseline) if isinstance(baseline, str) else baseline
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    raw = [
        one
        for metric in names
        for group in among
        if group is not base and (one := _compared(group, base, metric, confidence, interval)) is not None
    ]
    corrected = statistics.holm([one.p for one in raw])
    whole = [replace(one, p_holm=float(p)) for one, p in zip(raw, corrected, strict=True)]
    judged = [(one, *judge(one, rule)) for one in whole]
    return [replace(one, verdict=verdict, why=why) for one, verdict, why in judged]


@dataclass(frozen=True)
class RepeatNoise:
    """How far runs of one configuration and one seed lie apart, in the metric's scale (of logarithms for "log").

    std: sample standard deviation pooled over the configurations that ran more than once; NaN if none did.
    configurations, runs: how many these were. A difference below it may be one of machines, not of models.
    """

    metric: str
    scale: Scale
    std: float
    configurations: int
    runs: int


def repeat_noise(frame: "pd.DataFrame", metric: str) -> RepeatNoise:
    """The noise among finished runs of equal signature (so of one seed), as from two sweeps or two machines."""
    scale = scale_of(metric)
    known = frame[frame["state"] == "done"]
    values = known[metric].to_numpy(dtype=float) if metric in known else np.full(len(known), nan)
    by_signature: dict[str, list[float]] = {}
    for signature, value in zip(known["signature"], _on_scale(values, scale), strict=True):
        by_signature.setdefault(signature, []).append(float(value))
    found = statistics.repeat_spread(by_signature.values())
    return RepeatNoise(metric, scale, found.std, found.groups, found.values)


def _compared(group: Group, base: Group, metric: str, confidence: float, interval: IntervalKind) -> Comparison | None:
    ours, theirs = group.by_seed(metric), base.by_seed(metric)
    if not ours or not theirs:
        return None
    seeds = [seed for seed in ours if seed in theirs]
    a, b = (np.array([side[seed] for seed in seeds]) for side in (ours, theirs))
    scale = scale_of(metric)
    if scale == "log" and (np.r_[a, b] <= 0).any():
        scale = "difference"  # no logarithm of zero
    found = statistics.describe(_on_scale(a, scale) - _on_scale(b, scale), confidence, interval)
    back = _ratio_less_one if scale == "log" else float
    return Comparison(
        candidate=group.label,
        baseline=base.label,
        metric=metric,
        scale=scale,
        lower_is_better=lower_is_better(metric),
        n=len(seeds),
        unpaired=len(ours.keys() ^ theirs.keys()),
        candidate_mean=float(a.mean()) if seeds else nan,
        candidate_std=statistics.sample_std(a),
        baseline_mean=float(b.mean()) if seeds else nan,
        baseline_std=statistics.sample_std(b),
        difference=back(found.mean),
        low=back(found.low),
        high=back(found.high),
        spread=found.std,
        t=found.t,
        p=found.p,
        p_holm=nan,
        agree=found.agree,
        seeds_needed=statistics.seeds_needed(found.mean, found.std),
        verdict="not shown",
        why="",
    )


def _ratio_less_one(log_ratio: float) -> float:
    return expm1(log_ratio) if not log_ratio > 700 else inf


def _on_scale(values: np.ndarray, scale: Scale) -> np.ndarray:
    if scale == "difference":
        return values
    return np.log(np.where(values > 0, values, nan))
