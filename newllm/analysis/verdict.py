"""What a comparison may be called. Rules are presets in conf/report/verdict/; a rule's constructor is its schema."""

from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, Protocol

from newllm.errors import ConfigError

if TYPE_CHECKING:
    from newllm.analysis.comparison import Comparison

# `differs` is better or worse for a metric without a good direction.
Verdict = Literal["better", "worse", "differs", "not shown", "one seed"]


class Rule(Protocol):
    """A rule for verdicts; `judge` sees a comparison of at least two paired seeds, Holm's correction included."""

    @property
    def words(self) -> str:
        """The rule as a sentence, to stand below a table."""
        ...

    def shown(self, comparison: "Comparison") -> tuple[bool, str]:
        """Is the difference shown to be real, and why (or why not)?"""
        ...


class Interval:
    """A difference counts when its paired t-test, corrected for the number of comparisons, stays below `alpha`."""

    def __init__(self, alpha: float = 0.05, least_seeds: int = 3) -> None:
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha must be between 0 and 1, not {alpha}; type alpha=0.05")
        self.alpha, self.least_seeds = alpha, _at_least_two(least_seeds)

    @property
    def words(self) -> str:
        return (
            f"A difference is called better or worse if the paired t-test over seeds, with Holm's correction for all "
            f"comparisons shown, has p < {self.alpha:g}, and at least {self.least_seeds} seeds are paired."
        )

    def shown(self, comparison: "Comparison") -> tuple[bool, str]:
        if comparison.n < self.least_seeds:
            return False, f"{comparison.n} paired seeds, and the rule asks for {self.least_seeds}"
        corrected, needed = comparison.p_holm, comparison.seeds_needed
        if corrected < self.alpha:
            return True, f"corrected p = {_p(corrected)} < {self.alpha:g} over {comparison.n} seeds"
        alone = f" ({_p(comparison.p)} alone)" if comparison.p < self.alpha else ""
        more = f"; an effect of this size needs about {needed:,} seeds" if needed and needed > comparison.n else ""
        return False, f"corrected p = {_p(corrected)}{alone} over {comparison.n} seeds{more}"


class Published:
    """The rule of the published comparisons: better mean, spread small against the gap, most seeds agree."""

    def __init__(self, share: float = 2 / 3, spread: float = 1.0, least_seeds: int = 3) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, not {share}; type share=0.6667")
        if spread <= 0:
            raise ConfigError(f"spread must be greater than 0, not {spread}; type spread=1")
        self.share, self.spread, self.least_seeds = share, spread, _at_least_two(least_seeds)

    @property
    def words(self) -> str:
        return (
            f"A difference is called better or worse if the larger of the two sample standard deviations is at most "
            f"{self.spread:g} times the gap of the means, at least {self.share:.0%} of the paired seeds agree with it, "
            f"and at least {self.least_seeds} seeds are paired. It does not correct for the number of comparisons."
        )

    def shown(self, comparison: "Comparison") -> tuple[bool, str]:
        n, agree = comparison.n, comparison.agree
        if n < self.least_seeds:
            return False, f"{n} paired seeds, and the rule asks for {self.least_seeds}"
        signed = comparison.candidate_mean - comparison.baseline_mean
        if (signed > 0) != (comparison.difference > 0):
            return False, "the means and the paired differences do not point the same way"
        gap = abs(signed)
        spread = max(comparison.candidate_std, comparison.baseline_std)
        if gap == 0 or spread > self.spread * gap:
            return False, f"the spread {spread:.3g} is not small against the gap {gap:.3g}"
        if agree < self.share * n - 1e-9 * n:  # 2 of 3 is two thirds, also when typed 0.6667
            return False, f"only {agree} of {n} seeds agree"
        return True, f"spread {spread:.3g} against a gap of {gap:.3g}; {agree} of {n} seeds agree"


def judge(comparison: "Comparison", rule: Rule) -> tuple[Verdict, str]:
    """The verdict on a comparison and its reason. One seed never gives one, whatever the rule."""
    if comparison.n == 0:
        return "not shown", "no seed is in both groups"
    if comparison.n == 1:
        return "one seed", "one paired seed says nothing about other seeds"
    if not isfinite(comparison.difference):
        return "not shown", "the difference is not finite"
    shown, why = rule.shown(comparison)
    if not shown:
        return "not shown", why
    if comparison.lower_is_better is None:
        return "differs", why
    return ("better" if (comparison.difference < 0) == comparison.lower_is_better else "worse"), why


def presets() -> list[str]:
    """Names of the rules in conf/report/verdict/."""
    from newllm.config.catalog import shipped

    return sorted(file.stem for file in (shipped() / "report" / "verdict").glob("*.yaml"))


def rule(preset: str = "interval", **options: Any) -> Rule:
    """The rule of a preset, `options` (``alpha=0.01``) in the place of its own.

    Raises ConfigError for an unknown preset or option, and for a value of the wrong type.
    """
    from newllm.analysis.frame import read_yaml
    from newllm.build import build
    from newllm.config.catalog import shipped
    from newllm.config.coercion import coerce
    from newllm.config.schema import options as options_of
    from newllm.suggest import did_you_mean

    if preset not in presets():
        raise ConfigError(f"verdict={preset} is no rule; {did_you_mean(preset, presets(), prefix='verdict=')}.")
    node = {**read_yaml(shipped() / "report" / "verdict" / f"{preset}.yaml"), **options}
    signature = options_of(str(node["_target_"]))
    for name, value in node.items():
        if name == "_target_":
            continue
        if name not in signature.options:
            raise ConfigError(f"verdict.{name} is no option of {preset}; {did_you_mean(name, signature.options)}.")
        try:
            node[name] = coerce(value, signature.options[name].annotation)
        except ValueError as error:
            raise ConfigError(f"verdict.{name}={value}: {error}.") from None
    built: Rule = build(node)
    return built


def _at_least_two(seeds: int) -> int:
    if seeds < 2:
        raise ConfigError(f"least_seeds must be at least 2, not {seeds}; one seed never gives a verdict")
    return seeds


def _p(p: float) -> str:
    return "below 0.0001" if p < 1e-4 else f"{p:.2g}"
