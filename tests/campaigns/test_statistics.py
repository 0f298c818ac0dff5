"""What reports promise of intervals, verdicts and seeds, against simulated studies of which the truth is known.

docs/statistics.md holds the tables that this prints:

    pytest -m slow -n 0 -s tests/campaigns/test_statistics.py

One fast test, which always runs, shows that the verdicts simulated here are those of the package.
"""

from collections.abc import Iterable, Sequence
from math import sqrt

import numpy as np
import pytest
from scipy.stats import t as student

from newllm.analysis.comparison import Comparison, Interval, Published, Rule, judge, measure_all
from newllm.analysis.run_groups import Group
from newllm.analysis.statistics import bonferroni, bootstrap_interval, power_of, seeds_needed
from tests.support.run_folders import table

STUDIES = 20_000
FEWER = 1_000  # where each study takes thousands of resamples
SPREAD = 0.03  # of ln perplexity over seeds
NOISE = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "heavy tails (Student's t, 3)": lambda random, shape: random.standard_t(3, shape) / sqrt(3),
    "skewed (exponential)": lambda random, shape: random.exponential(size=shape) - 1,
}


def studies(
    groups: int, seeds: int, *, number: int = STUDIES, correlation: float = 0.5, noise: str = "normal"
) -> tuple[np.ndarray, np.ndarray]:
    """Perplexities without any true difference: of groups [number, groups, seeds] and a baseline [number, 1, seeds].

    correlation: of two runs of one seed; the share of the variance that is the seed's.
    """
    random = np.random.default_rng([groups, seeds, int(100 * correlation), len(noise)])
    shared = NOISE[noise](random, (number, 1, seeds))
    own = NOISE[noise](random, (number, groups + 1, seeds))
    values = 100 * np.exp(SPREAD * (sqrt(correlation) * shared + sqrt(1 - correlation) * own))
    return values[:, 1:], values[:, :1]


def t_intervals(differences: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Student's intervals of the means over the last axis."""
    n = differences.shape[-1]
    half = student.ppf((1 + confidence) / 2, n - 1) * differences.std(-1, ddof=1) / sqrt(n)
    return differences.mean(-1) - half, differences.mean(-1) + half


def real_by_interval(groups: np.ndarray, baseline: np.ndarray, together: bool = True) -> np.ndarray:
    """Bool [studies, groups]: the default rule, with 95 % confidence of all intervals together, or of each alone."""
    comparisons = groups.shape[1] if together else 1
    low, high = t_intervals(np.log(groups / baseline), bonferroni(0.95, comparisons))
    return (low > 0) | (high < 0)


def real_as_published(groups: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Bool [studies, groups]: the rule verdict=published."""
    differences = np.log(groups / baseline)
    gap = groups.mean(-1) - baseline.mean(-1)
    spread = np.maximum(groups.std(-1, ddof=1), baseline.std(-1, ddof=1))
    agree = (np.sign(differences) == np.sign(differences.mean(-1))[..., None]).sum(-1)
    same_way = np.sign(gap) == np.sign(differences.mean(-1))
    return same_way & (spread <= abs(gap)) & (agree >= 2 / 3 * groups.shape[-1] - 1e-6)


def package_verdicts(groups: np.ndarray, baseline: np.ndarray, rule: Rule) -> list[Comparison]:
    """The package's own comparisons of one study: groups [groups, seeds], baseline [1, seeds]."""
    frame = table([([], 1, {})])
    runs = [_Seeds(str(number), {}, frame, np.array([0]), values) for number, values in enumerate([*baseline, *groups])]
    return judge(measure_all(dict.fromkeys(runs[1:], runs[0]), ["val/ppl"]), rule)


class _Seeds(Group):
    """A group with given values by seed."""

    def __init__(self, label: str, settings: dict, frame: object, positions: np.ndarray, values: np.ndarray) -> None:
        super().__init__(label, settings, frame, positions)  # type: ignore[arg-type]
        object.__setattr__(self, "by_seed", lambda metric: dict(enumerate(values.tolist())))
        object.__setattr__(self, "missing", lambda metric: {})


def test_the_simulated_rules_are_those_of_the_package() -> None:
    groups, baseline = studies(4, 3, number=30, correlation=0.0)
    groups[:, ::2] *= 0.9  # so that some differences are real
    rules: dict[Rule, np.ndarray] = {
        Interval(): real_by_interval(groups, baseline),
        Published(): real_as_published(groups, baseline),
    }
    for rule, simulated in rules.items():
        verdicts = [package_verdicts(*study, rule) for study in zip(groups, baseline, strict=True)]
        assert [[one.verdict != "inconclusive" for one in study] for study in verdicts] == simulated.tolist()
        assert {True, False} == {*simulated.ravel().tolist()}


def show(title: str, rows: Iterable[Sequence[object]], *header: str) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n")
    for row in (header, ["---"] + ["---:"] * (len(header) - 1), *rows):
        print("| " + " | ".join(f"{100 * cell:.1f} %" if isinstance(cell, float) else str(cell) for cell in row) + " |")


@pytest.mark.slow
def test_false_verdicts_without_any_difference() -> None:
    sizes = [(groups, seeds) for groups in (1, 4, 8, 16) for seeds in (3, 5, 10)]
    header = ["rule, noise", *(f"{groups}, {seeds}" for groups, seeds in sizes)]
    rows = []
    for noise, correlation in [("normal", 0.5), ("normal", 0.0), *((name, 0.5) for name in list(NOISE)[1:])]:
        data = [studies(*size, correlation=correlation, noise=noise) for size in sizes]
        name = f"{noise}, correlation {correlation:g}"
        together = [float(real_by_interval(*study).any(1).mean()) for study in data]
        alone = [float(real_by_interval(*study, together=False).any(1).mean()) for study in data]
        published = [float(real_as_published(*study).any(1).mean()) for study in data]
        rows += [[f"interval; {name}", *together], [f"uncorrected intervals; {name}", *alone]]
        rows += [[f"published; {name}", *published]]
        if noise == "normal":
            assert max(together) < 0.055
            for (groups, seeds), rate in zip(sizes, published, strict=True):
                assert Published().false_rate([seeds] * groups, correlation) == pytest.approx(rate, abs=0.02)
    show("Studies with at least one false verdict, by groups and seeds", rows, *header)


@pytest.mark.slow
def test_coverage() -> None:
    """Of Student's intervals: also all of a study at once. Of bootstrap intervals: for few seeds far too low."""
    seeds = (3, 5, 10, 20, 40)
    rows = []
    for noise in NOISE:
        for groups in (1, 8):
            every = [studies(groups, n, correlation=0, noise=noise) for n in seeds]
            inside = [float((~real_by_interval(*study)).all(1).mean()) for study in every]
            rows.append([f"Student's t, {groups} together; {noise}", *inside])
            if noise == "normal":
                assert min(inside) > 0.945
    random = np.random.default_rng(1)
    for groups in (1, 8):
        covered = []
        for n in seeds if groups == 1 else ():
            ends = [bootstrap_interval(random.standard_normal(n)) for _ in range(FEWER)]
            covered.append(sum(low <= 0 <= high for low, high in ends) / FEWER)
        for n in (20, 40) if groups == 8 else ():
            each = bonferroni(0.95, groups)
            ends = [bootstrap_interval(random.standard_normal(n), each) for _ in range(FEWER)]
            covered.append((sum(low <= 0 <= high for low, high in ends) / FEWER) ** groups)
        rows.append(
            [f"bootstrap (BCa), {groups} together; normal", *["refused"] * (len(seeds) - len(covered)), *covered]
        )
    show("Studies of which all intervals hold the truth", rows, "intervals, noise", *(f"{n} seeds" for n in seeds))


@pytest.mark.slow
def test_power_at_the_seeds_needed() -> None:
    rows, pilots = [], []
    random = np.random.default_rng(2)
    for effect in (0.5, 1.0, 2.0, 4.0):
        for groups in (1, 8, 72):
            alpha = 1 - bonferroni(0.95, groups)
            n = seeds_needed(effect, 1.0, alpha=alpha)
            assert n is not None
            low, high = t_intervals(effect + random.standard_normal((STUDIES, n)), 1 - alpha)
            found = float(((low > 0) | (high < 0)).mean())
            assert found > 0.79
            rows.append([f"{effect:g} spreads", groups, n, found])
    show("Power at the seeds needed, effect and spread known", rows, "effect", "comparisons", "seeds needed", "found")
    for n in (3, 5, 10):
        alpha = 1 - bonferroni(0.95, 8)
        samples = 1.0 + random.standard_normal((FEWER, n))
        low, high = t_intervals(samples, 1 - alpha)
        open_ones = samples[(low <= 0) & (high >= 0)]
        asked = [seeds_needed(float(one.mean()), float(one.std(ddof=1)), alpha=alpha) or 10**6 for one in open_ones]
        assert min(asked) > n
        powers = np.quantile([power_of(1.0, seeds, alpha) for seeds in asked], [0.1, 0.5, 0.9]).tolist()
        pilots.append([f"{n} seeds", *np.quantile(asked, [0.1, 0.5, 0.9]).round().astype(int).tolist(), *powers])
    names = [f"{what}, {q} %" for what in ("seeds asked for", "power with them") for q in (10, 50, 90)]
    show("The same, estimated from a first study (true effect 1 spread, 8 comparisons)", pilots, "first study", *names)


@pytest.mark.slow
def test_the_seeds_that_are_left_would_win() -> None:
    """The worse two of seven seeds of a group diverge; it has no advantage over the baseline."""
    rows = []
    for correlation in (0.0, 0.5, 0.9):
        groups, baseline = studies(1, 7, correlation=correlation)
        order = np.argsort(groups[:, 0], axis=-1)[:, :5]
        left, same = np.take_along_axis(groups[:, 0], order, 1), np.take_along_axis(baseline[:, 0], order, 1)
        differences = np.log(left / same)
        lower = float((left.mean(-1) < baseline[:, 0].mean(-1)).mean())
        better = float((t_intervals(differences, 0.95)[1] < 0).mean())
        rows.append([f"correlation {correlation:g}", lower, better])
        assert lower > 0.55
        assert better > 0.025  # what chance gives
    show("Verdicts from the seeds that are left", rows, "seeds", "lower mean than the baseline", "called better")
