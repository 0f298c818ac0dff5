"""Each group against a baseline: differences paired by seed, their interval, test and verdict.

`measure` gives the differences of two groups, `judge` the intervals and verdicts of all comparisons that stand in one
report: they are one family, under one correction. `decide` gives each verdict. What the rules ask for is here too;
their presets are in conf/report/verdict/. docs/statistics.md says what the intervals and verdicts promise.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import expm1, inf, isfinite, nan
from typing import Any, Protocol

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

LEAST_FOR_BOOTSTRAP = 20  # paired seeds
ROUNDING = 1e-6  # of a metric that was computed in fp32
SIMULATED = 10_000  # studies without any difference, for the false verdicts of a rule; fewer of very large ones


@dataclass(frozen=True)
class Comparison:
    """A group against the baseline on one metric, over the seeds that both have.

    candidate, baseline: labels.
    scale: "log": `difference` is the ratio of the geometric means - 1 (-0.05: five percent lower), computed from
        differences of logarithms; "difference": it is the mean difference in the metric's own unit.
    lower_is_better: None for a metric without a good direction.
    n: paired seeds. unpaired: seeds of which only one of the two has a value, which are left out.
    unscored: those of them that ran in both, but were not measured on the same tokens.
    incomplete: which seeds have no finite value, as `2 of 7 seeds diverged`. Then there are no numbers and no verdict,
        since they would be those of the seeds that are left. Empty if all seeds have one.
    candidate_mean, …, baseline_std: arithmetic means and sample standard deviations (ddof=1) over the paired seeds.
    differences: by seed, on the scale (of logarithms for "log").
    difference: their mean, as `scale` says. spread: their sample standard deviation.
    t, p: paired t-test, n - 1 degrees of freedom.
    agree: seeds whose difference has the sign of the mean difference.

    The rest is by `judge`. family: the comparisons that were tested together, 0 if this one was not tested.
    low, high: the interval; all intervals of the family hold together with the confidence that was asked for.
    p_corrected: p times `family`, at most 1. Below 1 - confidence just where Student's interval leaves out 0.
    seeds_needed: with which the interval leaves out 0 with 80 % probability, if the observed mean and spread of the
        differences are the true ones; None where it leaves out 0 already, where it is unknown, and for rules that do
        not look at the interval.
    verdict: "better", "worse", "differs" (for a metric without a good direction), "inconclusive"; without a test
        "zero spread", "too few seeds", "one seed", "one common seed", "no common seed", or `incomplete`.
    why: the reason for it.
    """

    candidate: str
    baseline: str
    metric: str
    scale: Scale
    lower_is_better: bool | None
    n: int
    unpaired: int
    incomplete: str
    candidate_mean: float
    candidate_std: float
    baseline_mean: float
    baseline_std: float
    differences: tuple[float, ...]
    difference: float
    spread: float
    t: float
    p: float
    agree: int
    unscored: int = 0
    family: int = 0
    low: float = nan
    high: float = nan
    p_corrected: float = nan
    seeds_needed: int | None = None
    verdict: str = ""
    why: str = ""

    @property
    def excludes_zero(self) -> bool:
        """Does the interval leave out 0?"""
        return self.low > 0 or self.high < 0


class Rule(Protocol):
    """When a difference counts as real. `words` is the rule as a sentence, to stand below a table."""

    least_seeds: int

    @property
    def words(self) -> str: ...

    def is_real(self, comparison: Comparison) -> tuple[bool, str]:
        """The answer and its reason, for a comparison that was tested over at least `least_seeds` seeds."""
        ...

    def false_verdicts(self, tested: Sequence[Comparison], confidence: float) -> str:
        """A sentence: how often the rule calls a difference real where there is none, in a report like this one."""
        ...


def why_untested(comparison: Comparison, least_seeds: int) -> tuple[str, str] | None:
    """The verdict on a comparison that cannot be tested, and why; None for one that can."""
    n = comparison.n
    if comparison.incomplete:
        why = "a group counts with all its seeds or not at all: those that went well say nothing about the others"
        if "not measured" in comparison.incomplete:
            why += "; newllm evaluate measures the missing ones"
        return comparison.incomplete, why
    unscored = comparison.unscored
    more = f"; {unscored} more not measured on the same tokens in both groups" if unscored else ""
    if n == 0:
        return "no common seed", f"no seed is in both groups{more.replace('more', 'are, but')}"
    if n == 1:
        seeds = "one common seed" if comparison.unpaired else "one seed"
        return seeds, f"one paired seed says nothing about other seeds{more}"
    if comparison.spread == 0:
        what = "ratio" if comparison.scale == "log" else "difference"
        return "zero spread", f"all {n} pairs have the same {what}, so there is no noise to test it against"
    if n < least_seeds:
        return "too few seeds", f"{n} paired seeds, and the rule asks for {least_seeds}{more}"
    if not isfinite(comparison.p):
        return "too large", "the differences are too large for a test in double precision"
    return None


def decide(comparison: Comparison, rule: Rule) -> tuple[str, str]:
    """The verdict on a comparison that was tested, with its interval, and why."""
    real, why = rule.is_real(comparison)
    if not real:
        return "inconclusive", why
    if comparison.lower_is_better is None:
        return "differs", why
    return ("better" if (comparison.difference < 0) == comparison.lower_is_better else "worse"), why


class Interval:
    """A difference is real if its interval leaves out 0. All intervals of a report hold together."""

    def __init__(self, least_seeds: int = 3) -> None:
        at_least("least_seeds", least_seeds, 2, 3)  # one seed never gives a verdict
        self.least_seeds = least_seeds

    @property
    def words(self) -> str:
        return (
            f"Of at least {self.least_seeds} paired seeds, a difference is called better or worse if its interval "
            "leaves out 0; otherwise it is inconclusive, which does not say that there is none."
        )

    def is_real(self, comparison: Comparison) -> tuple[bool, str]:
        needed = comparison.seeds_needed
        alone = f", alone {p_text(comparison.p)}" if comparison.family > 1 else ""
        test = f"(corrected p: {p_text(comparison.p_corrected)}{alone}; {comparison.n} seeds)"
        if comparison.excludes_zero:
            return True, f"the interval leaves out 0 {test}"
        more = f"; an effect of this size needs about {needed:,} seeds" if needed else ""
        return False, f"the interval includes 0 {test}{more}"

    def false_verdicts(self, tested: Sequence[Comparison], confidence: float) -> str:
        return f"Without any true difference, the chance of one false verdict or more is at most {1 - confidence:.2g}."


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
            f"{self.spread:g} times the gap of the means, at least {100 * self.share:.0f} % of the paired seeds agree "
            f"with it, and at least {self.least_seeds} seeds are paired. The rule does not look at the intervals, and "
            "does not correct for the number of comparisons."
        )

    def is_real(self, comparison: Comparison) -> tuple[bool, str]:
        n, agree = comparison.n, comparison.agree
        gap = comparison.candidate_mean - comparison.baseline_mean
        if (gap > 0) != (comparison.difference > 0):
            return False, "the means and the paired differences do not point the same way"
        gap, spread = abs(gap), max(comparison.candidate_std, comparison.baseline_std)
        if not self._holds(gap, spread, agree, n):
            if gap == 0 or spread > self.spread * gap:
                return False, f"the spread {spread:.3g} is not small against the gap {gap:.3g}"
            return False, f"only {agree} of {n} seeds agree"
        return True, f"spread {spread:.3g} against a gap of {gap:.3g}; {agree} of {n} seeds agree"

    def _holds(self, gap: Any, spread: Any, agree: Any, n: int) -> Any:
        # 2 of 3 is two thirds, also when typed as 0.6667
        return (gap > 0) & (spread <= self.spread * gap) & (agree >= self.share * n - 1e-9 * n)

    def false_verdicts(self, tested: Sequence[Comparison], confidence: float) -> str:
        if not tested:
            return ""
        sizes = [comparison.n for comparison in tested]
        alone, half = (self.false_rate(sizes, correlation) for correlation in (0.0, 0.5))
        seeds = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        many = f"at least one of these {len(sizes)} comparisons" if len(sizes) > 1 else "this one comparison"
        return (
            f"False verdicts: without any true difference, this rule calls {many} ({seeds} seeds) better or worse in "
            f"{100 * alone:.1f} % of studies where the runs of a seed have nothing in common, and in {100 * half:.1f} "
            "% where half of the variance is the seed's (simulated, of comparisons that have nothing but the baseline "
            "in common)."
        )

    def false_rate(self, seeds: Sequence[int], correlation: float) -> float:
        """How often a study without any true difference has a false verdict: simulated, the same at every call.

        seeds: paired seeds of each comparison, all with one baseline. correlation: of the two runs of a seed.
        """
        generator = np.random.Generator(np.random.PCG64(0))
        studies = min(SIMULATED, max(200, 20_000_000 // sum(seeds)))
        batch = max(1, min(studies, 1_000_000 // sum(seeds)))  # studies at a time
        wrong = 0
        for _ in range(studies // batch):
            shared = correlation**0.5 * generator.standard_normal((batch, max(seeds)))
            own = (1 - correlation) ** 0.5
            baseline = shared + own * generator.standard_normal((batch, max(seeds)))
            false = np.zeros(batch, dtype=bool)
            for n, times in Counter(seeds).items():
                group = shared[:, None, :n] + own * generator.standard_normal((batch, times, n))
                differences = group - baseline[:, None, :n]
                gap = differences.mean(-1)
                spread = np.maximum(group.std(-1, ddof=1), baseline[:, None, :n].std(-1, ddof=1))
                agree = (np.sign(differences) == np.sign(gap)[..., None]).sum(-1)
                false |= self._holds(np.abs(gap), spread, agree, n).any(-1)
            wrong += int(false.sum())
        return wrong / (studies // batch * batch)


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
    rule: Any = build(convert_options({**yaml.safe_load(text), **options}, "verdict", owner=preset), object)
    return rule


def measure_all(pairs: Mapping[Group, Group], metrics: Sequence[str]) -> list[Comparison]:
    """Each group against its baseline (`pairs`: group -> baseline) on every metric that both have, for `judge`."""
    return [one for name in metrics for pair in pairs.items() if (one := measure(*pair, name))]


def measure(group: Group, baseline: Group, metric: str) -> Comparison | None:
    """The differences of two groups, for `judge`; None for a metric that one of the two does not have."""
    ours, theirs = group.by_seed(metric), baseline.by_seed(metric)
    whose = {"": group.missing_words(metric), "baseline: ": baseline.missing_words(metric)}
    incomplete = "; ".join(f"{name}{words}" for name, words in whose.items() if words)
    if not (ours or group.missing(metric)) or not (theirs or baseline.missing(metric)):
        return None
    positive = all(value > 0 for side in (ours, theirs) for value in side.values())
    scale = scale_of(metric) if positive else "difference"  # no logarithm of zero
    in_both = {*group.runs["seed"]} & {*baseline.runs["seed"]}
    one = paired(group.label, baseline.label, metric, scale, ours, theirs, incomplete)
    return replace(one, unscored=len(in_both - (ours.keys() & theirs.keys())))


def paired(
    candidate: str,
    baseline: str,
    metric: str,
    scale: Scale,
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    incomplete: str,
) -> Comparison:
    """The differences of two values by seed, for `judge`. The arguments are those of `Comparison`."""
    seeds = [seed for seed in ours if seed in theirs]
    a, b = (np.array([side[seed] for seed in seeds] if not incomplete else []) for side in (ours, theirs))
    differences = _differences(_on_scale(a, scale), _on_scale(b, scale), scale)
    sample = statistics.describe(differences)
    return Comparison(
        candidate=candidate,
        baseline=baseline,
        metric=metric,
        scale=scale,
        lower_is_better=lower_is_better(metric),
        n=len(seeds),
        unpaired=len(ours.keys() ^ theirs.keys()),
        incomplete=incomplete,
        candidate_mean=float(a.mean()) if len(a) else nan,
        candidate_std=statistics.sample_std(a),
        baseline_mean=float(b.mean()) if len(b) else nan,
        baseline_std=statistics.sample_std(b),
        differences=tuple(differences.tolist()),
        difference=_from_scale(sample.mean, scale),
        spread=sample.std,
        t=sample.t,
        p=sample.p,
        agree=sample.agree,
    )


def judge(
    measured: Sequence[Comparison],
    rule: Rule,
    confidence: float = 0.95,
    interval: statistics.IntervalKind = "t",
) -> list[Comparison]:
    """The comparisons as one family, in their order: intervals that hold together, corrected p-values, verdicts.

    The correction is Bonferroni's: simple, right under any dependence, and the only one of the usual ones whose
    intervals say the same as its test. Comparisons without a test do not count.

    Raises ConfigError for a bootstrap of fewer than LEAST_FOR_BOOTSTRAP seeds.
    """
    untested = [why_untested(one, rule.least_seeds) for one in measured]
    tested = [one for one, why in zip(measured, untested, strict=True) if why is None]
    few = min(tested, key=lambda one: one.n, default=None)
    if interval == "bootstrap" and few and few.n < LEAST_FOR_BOOTSTRAP:
        raise ConfigError(
            f"interval=bootstrap needs {LEAST_FOR_BOOTSTRAP} paired seeds, and {few.candidate} has {few.n}: of so few, "
            "intervals of 95 % cover the truth far less often (72 % with 3 seeds, 83 % with 5, 90 % with 10); leave it "
            "out for Student's t."
        )
    each = statistics.bonferroni(confidence, len(tested))
    result = []
    for one, outcome in zip(measured, untested, strict=True):
        if outcome is None:
            low, high = (_from_scale(end, one.scale) for end in statistics.interval_of(one.differences, each, interval))
            p_corrected = min(1.0, len(tested) * one.p)
            one = replace(one, family=len(tested), low=low, high=high, p_corrected=p_corrected)
            if isinstance(rule, Interval) and not one.excludes_zero:
                needed = statistics.seeds_needed(float(np.mean(one.differences)), one.spread, alpha=1 - each)
                # A bootstrap interval is not quite Student's.
                one = replace(one, seeds_needed=max(needed, one.n + 1) if needed else None)
            outcome = decide(one, rule)
        else:
            one = replace(one, t=nan, p=nan)
        result.append(replace(one, verdict=outcome[0], why=outcome[1]))
    return result


def family_in_words(
    comparisons: Sequence[Comparison], rule: Rule, confidence: float, what: str = "comparisons of this report"
) -> str:
    """What the intervals and p-values of a family hold for, and how often the rule is wrong; empty without a test.

    what: the comparisons, in words.
    """
    tested = [one for one in comparisons if one.family]
    if not tested:
        return ""
    wrong = rule.false_verdicts(tested, confidence)
    if len(tested) == 1:
        return f"Of the {what} one can be tested, so nothing is corrected. {wrong}"
    each = statistics.bonferroni(confidence, len(tested))
    return (
        f"The {len(tested)} {what} that can be tested are one family: all their intervals hold "
        f"together with {100 * confidence:.6g} % confidence (each alone with {100 * each:.6g} %), and corrected "
        f"p-values are {len(tested)} times the single ones (Bonferroni). {wrong}"
    )


def _differences(a: np.ndarray, b: np.ndarray, scale: Scale) -> np.ndarray:
    """a - b; exactly equal where they differ by no more than what rounding does, and 0 where all pairs are equal up to
    the rounding of fp32, as the results of two kernels are."""
    differences = a - b
    if (np.abs(differences) <= ROUNDING * (1.0 if scale == "log" else np.maximum(np.abs(a), np.abs(b)))).all():
        return np.zeros(len(a))
    largest = max(float(scale == "log"), *np.abs(np.r_[a, b]))  # a relative error is one of that size in logarithms
    equal = len(a) > 1 and np.ptp(differences) <= 64 * np.finfo(float).eps * largest
    return np.full(len(a), differences.mean()) if equal else differences


def _from_scale(value: float, scale: Scale) -> float:
    """A difference as `Comparison.difference` has it."""
    if scale == "difference":
        return value
    return inf if value > 700 else expm1(value)  # a larger ratio would overflow


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


def p_text(p: float) -> str:
    """``0.012``, or ``< 0.0001``."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
