"""Each group against a baseline: differences paired by seed, their interval, test and verdict.

`decide` gives the verdicts. What the rules ask for is here too; their presets are in conf/report/verdict/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import expm1, inf, isfinite, nan
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import yaml

from newllm.analysis import statistics
from newllm.analysis.metrics import Scale, lower_is_better, scale_of
from newllm.analysis.run_groups import Group
from newllm.analysis.scored import fingerprint
from newllm.build import build
from newllm.checks import above, at_least
from newllm.config.catalog import shipped
from newllm.config.values import convert_options
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean

# `differs` is better or worse for a metric without a good direction.
Verdict = Literal["better", "worse", "differs", "not shown", "one seed", "no common seed"]


@dataclass(frozen=True)
class Comparison:
    """A group against the baseline on one metric, over the seeds that both have.

    candidate, baseline: labels.
    scale: "log": `difference` is the ratio of the geometric means - 1 (-0.05: five percent lower), computed from
        differences of logarithms; "difference": it is the mean difference in the metric's own unit.
    lower_is_better: None for a metric without a good direction.
    n: paired seeds. unpaired: seeds that only one of the two has, which are left out.
    candidate_mean, …, baseline_std: arithmetic means and sample standard deviations (ddof=1) over the paired seeds.
    difference, low, high: with its interval; NaN for one seed.
    spread: sample standard deviation of the paired differences, on the scale (of logarithms for "log").
    t, p: paired t-test on the scale, n - 1 degrees of freedom. p_holm: corrected for all comparisons made together.
    agree: seeds whose difference has the sign of the mean difference.
    seeds_needed: for 80 % power at the observed effect; None where it is unknown.
    verdict, why: by `decide`.
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
    agree: int
    seeds_needed: int | None
    p_holm: float = nan
    verdict: Verdict = "not shown"
    why: str = ""


class Rule(Protocol):
    """When a difference counts as real. `words` is the rule as a sentence, to stand below a table."""

    least_seeds: int

    @property
    def words(self) -> str: ...

    def is_real(self, comparison: Comparison) -> tuple[bool, str]:
        """The answer and its reason, for a comparison with Holm's correction over at least `least_seeds` seeds."""
        ...


def decide(comparison: Comparison, rule: Rule) -> tuple[Verdict, str]:
    """The verdict on a comparison, and why. One seed never gives one, whatever the rule."""
    n = comparison.n
    if n == 0:
        return "no common seed", "no seed is in both groups"
    if n == 1:
        return "one seed", "one paired seed says nothing about other seeds"
    if not isfinite(comparison.difference):
        return "not shown", "the difference is not finite"
    if n < rule.least_seeds:
        return "not shown", f"{n} paired seeds, and the rule asks for {rule.least_seeds}"
    real, why = rule.is_real(comparison)
    if not real:
        return "not shown", why
    if comparison.lower_is_better is None:
        return "differs", why
    return ("better" if (comparison.difference < 0) == comparison.lower_is_better else "worse"), why


class Interval:
    """A difference is real if its paired t-test, corrected for the number of comparisons, stays below `alpha`."""

    def __init__(self, alpha: float = 0.05, least_seeds: int = 3) -> None:
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha must be between 0 and 1, not {alpha}; type alpha=0.05")
        at_least("least_seeds", least_seeds, 2, 3)  # one seed never gives a verdict
        self.alpha, self.least_seeds = alpha, least_seeds

    @property
    def words(self) -> str:
        return (
            f"A difference is called better or worse if the paired t-test over seeds, with Holm's correction for all "
            f"comparisons shown, has p < {self.alpha:g}, and at least {self.least_seeds} seeds are paired."
        )

    def is_real(self, comparison: Comparison) -> tuple[bool, str]:
        n, corrected, needed = comparison.n, _p(comparison.p_holm), comparison.seeds_needed
        if comparison.p_holm < self.alpha:
            return True, f"corrected p = {corrected} < {self.alpha:g} over {n} seeds"
        alone = f" ({_p(comparison.p)} alone)" if comparison.p < self.alpha else ""
        more = f"; an effect of this size needs about {needed:,} seeds" if needed and needed > n else ""
        return False, f"corrected p = {corrected}{alone} over {n} seeds{more}"


class Published:
    """The rule of the published comparisons: better mean, spread small against the gap, most seeds agree."""

    def __init__(self, share: float = 2 / 3, spread: float = 1.0, least_seeds: int = 3) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, not {share}; type share=0.6667")
        above("spread", spread, 0, 1)
        at_least("least_seeds", least_seeds, 2, 3)
        self.share, self.spread, self.least_seeds = share, spread, least_seeds

    @property
    def words(self) -> str:
        return (
            f"A difference is called better or worse if the larger of the two sample standard deviations is at most "
            f"{self.spread:g} times the gap of the means, at least {self.share:.0%} of the paired seeds agree with it, "
            f"and at least {self.least_seeds} seeds are paired. It does not correct for the number of comparisons."
        )

    def is_real(self, comparison: Comparison) -> tuple[bool, str]:
        n, agree = comparison.n, comparison.agree
        gap = comparison.candidate_mean - comparison.baseline_mean
        if (gap > 0) != (comparison.difference > 0):
            return False, "the means and the paired differences do not point the same way"
        gap, spread = abs(gap), max(comparison.candidate_std, comparison.baseline_std)
        if gap == 0 or spread > self.spread * gap:
            return False, f"the spread {spread:.3g} is not small against the gap {gap:.3g}"
        if agree < self.share * n - 1e-9 * n:  # 2 of 3 is two thirds, also when typed as 0.6667
            return False, f"only {agree} of {n} seeds agree"
        return True, f"spread {spread:.3g} against a gap of {gap:.3g}; {agree} of {n} seeds agree"


def presets() -> list[str]:
    """Names of the rules in conf/report/verdict/."""
    return sorted(file.stem for file in (shipped() / "report" / "verdict").glob("*.yaml"))


def make_rule(preset: str = "interval", **options: Any) -> Rule:
    """The rule of a preset, with `options` (``alpha=0.01``) in place of its own.

    Raises ConfigError for an unknown preset or option, and for a value of the wrong type.
    """
    if preset not in presets():
        raise ConfigError(f"verdict={preset} is not a rule; {did_you_mean(preset, presets(), prefix='verdict=')}.")
    text = (shipped() / "report" / "verdict" / f"{preset}.yaml").read_text(encoding="utf-8")
    rule: Rule = build(convert_options({**yaml.safe_load(text), **options}, "verdict", owner=preset))
    return rule


def compare(
    pairs: Mapping[Group, Group],
    metrics: Sequence[str],
    rule: Rule,
    confidence: float = 0.95,
    interval: statistics.IntervalKind = "t",
) -> list[Comparison]:
    """Each group against its baseline (`pairs`: group -> baseline) on every metric; a metric that one of the two lacks
    is passed over.

    Holm's correction runs over all of these together.
    """
    tested = (_pair(*pair, metric, confidence, interval) for metric in metrics for pair in pairs.items())
    comparisons = [comparison for comparison in tested if comparison is not None]
    corrected = statistics.holm([comparison.p for comparison in comparisons]).tolist()
    result = []
    for uncorrected, p_holm in zip(comparisons, corrected, strict=True):
        comparison = replace(uncorrected, p_holm=p_holm)
        verdict, why = decide(comparison, rule)
        result.append(replace(comparison, verdict=verdict, why=why))
    return result


def _pair(
    group: Group, baseline: Group, metric: str, confidence: float, interval: statistics.IntervalKind
) -> Comparison | None:
    """The comparison without its correction and its verdict; None where one of the two has no such metric."""
    ours, theirs = group.by_seed(metric), baseline.by_seed(metric)
    if not ours or not theirs:
        return None
    seeds = [seed for seed in ours if seed in theirs]
    a, b = (np.array([side[seed] for seed in seeds]) for side in (ours, theirs))
    scale = scale_of(metric)
    if scale == "log" and (np.r_[a, b] <= 0).any():
        scale = "difference"  # no logarithm of zero
    sample = statistics.describe(_on_scale(a, scale) - _on_scale(b, scale), confidence, interval)

    def from_scale(value: float) -> float:
        if scale == "difference":
            return value
        return inf if value > 700 else expm1(value)  # a larger ratio would overflow

    return Comparison(
        candidate=group.label,
        baseline=baseline.label,
        metric=metric,
        scale=scale,
        lower_is_better=lower_is_better(metric),
        n=len(seeds),
        unpaired=len(ours.keys() ^ theirs.keys()),
        candidate_mean=float(a.mean()) if seeds else nan,
        candidate_std=statistics.sample_std(a),
        baseline_mean=float(b.mean()) if seeds else nan,
        baseline_std=statistics.sample_std(b),
        difference=from_scale(sample.mean),
        low=from_scale(sample.low),
        high=from_scale(sample.high),
        spread=sample.std,
        t=sample.t,
        p=sample.p,
        agree=sample.agree,
        seeds_needed=statistics.seeds_needed(sample.mean, sample.std),
    )


def repeat_noise(frame: pd.DataFrame, metric: str) -> statistics.Repeats:
    """How far apart finished runs of one signature (so of one seed) that scored the same tokens are on the metric's
    scale, as from two machines.

    A smaller difference between groups may come from machines, not from models.
    """
    done = frame[frame["state"] == "done"]
    if metric not in done:
        return statistics.repeat_spread([])
    values = pd.Series(_on_scale(done[metric].to_numpy(dtype=float), scale_of(metric)))
    scored = np.array([fingerprint(one, metric) or "" for one in done["scored"]], dtype=object)
    return statistics.repeat_spread(
        [some.to_numpy() for _, some in values.groupby([done["signature"].to_numpy(), scored])]
    )


def _on_scale(values: np.ndarray, scale: Scale) -> np.ndarray:
    return values if scale == "difference" else np.log(np.where(values > 0, values, nan))


def _p(p: float) -> str:
    return "below 0.0001" if p < 1e-4 else f"{p:.2g}"
