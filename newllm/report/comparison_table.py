"""The comparisons in full: every number behind a verdict, the rule in words, and the noise of repeats."""

from collections.abc import Sequence
from math import expm1, isfinite
from typing import TYPE_CHECKING

from newllm.analysis.comparison import Comparison, repeat_noise
from newllm.report.main_table import difference_words, verdict_cell
from newllm.report.options import Options
from newllm.report.study import Part
from newllm.report.table import Cell, Column, Table, figure, percent, spread, words

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = [
    Column("group"),
    Column("metric"),
    Column("pairs", numeric=True, hint="seeds that both have"),
    Column("difference", numeric=True),
    Column("interval", numeric=True),
    Column("verdict"),
    Column("p (Holm)", numeric=True, hint="corrected for all comparisons of this table"),
    Column("agree", numeric=True, hint="seeds whose difference has the sign of the mean difference"),
    Column("seeds needed", numeric=True, hint="for 80 % power at the observed effect"),
    Column("group's mean", numeric=True, hint="over the paired seeds, ± sample standard deviation"),
    Column("baseline's mean", numeric=True, hint="over the paired seeds, ± sample standard deviation"),
    Column("spread", numeric=True, hint="sample standard deviation of the paired differences"),
    Column("t", numeric=True, hint="paired t-test"),
    Column("p", numeric=True),
    Column("left out", numeric=True, hint="seeds that only one of the two has"),
    Column("why"),
]


def comparison_table(part: Part, rule_words: str) -> Table | None:
    """A row per comparison, None where nothing is compared."""
    if not part.comparisons:
        return None
    title = part.named(f"Comparisons with {part.comparisons[0].baseline}")
    return full_table(f"comparisons{part.mark}", title, part.comparisons, part.options, [rule_words])


def full_table(
    name: str, title: str, comparisons: Sequence[Comparison], options: Options, notes: Sequence[str]
) -> Table:
    """Every number of some comparisons; `notes` stand last below them."""
    scales = dict.fromkeys(one.scale for one in comparisons)
    said = {
        "log": "Perplexities and other ratios are compared by their logarithms: the difference is the ratio of "
        "geometric means less one, the spread that of logarithms.",
        "difference": "Other metrics are compared by plain differences in their own unit.",
    }
    how = {"t": "Student's t", "bootstrap": "the BCa bootstrap"}[options.interval]
    before = [*(said[scale] for scale in scales), f"Intervals of {options.confidence:.0%} by {how}."]
    return Table(name, title, _COLUMNS, [_row(one) for one in comparisons], [*before, *notes])


def _row(one: Comparison) -> list[Cell]:
    difference, interval = difference_words(one)
    ends = {"scale": one.scale, "difference low": one.low, "difference high": one.high}
    return [
        Cell(one.candidate, one.candidate, {"group": one.candidate, "baseline": one.baseline}),
        words(one.metric, "metric"),
        figure(one.n, "pairs"),
        figure(one.difference, "difference", difference),
        Cell(interval, one.low if isfinite(one.low) else None, ends),
        verdict_cell(one),
        figure(one.p_holm, "p holm", _p(one.p_holm)),
        Cell(f"{one.agree} of {one.n}", one.agree, {"agree": one.agree}),
        figure(one.seeds_needed, "seeds needed"),
        _mean(one.candidate_mean, one.candidate_std, "group"),
        _mean(one.baseline_mean, one.baseline_std, "baseline"),
        figure(one.spread, "spread"),
        figure(one.t, "t", f"{one.t:.2f}"),
        figure(one.p, "p", _p(one.p)),
        figure(one.unpaired, "left out"),
        Cell(one.why, one.why, {"why": one.why}, kind="long"),
    ]


def repeats(done: "pd.DataFrame", metric: str) -> str:
    """A sentence on the spread of the same configuration and seed run more than once."""
    found = repeat_noise(done, metric)
    if not found.configurations:
        return "Repeat noise is not known: no configuration was run twice with one seed."
    several = found.configurations > 1
    many = f"{found.configurations} configurations with one seed were" if several else "One configuration and seed was"
    said = f"Repeat noise: {many} run more than once ({found.runs} runs); "
    if found.std == 0:
        return f"{said}they agree in {metric} to the last digit."
    log = found.scale == "log"
    relative = f" ({percent(expm1(found.std)).lstrip('+')})" if log else ""
    return f"{said}their pooled standard deviation of {'ln ' if log else ''}{metric} is {found.std:.3g}{relative}."


def _mean(mean: float, std: float, whose: str) -> Cell:
    exact = {f"{whose} mean": mean, f"{whose} std": std if isfinite(std) else ""}
    return Cell(spread(mean, std), mean if isfinite(mean) else None, exact)


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
