"""Verdicts at each length, and the ruler's tasks."""

from collections.abc import Sequence
from math import isfinite

from newllm.analysis.comparison import Comparison, Rule, compare
from newllm.analysis.groups import Group
from newllm.analysis.statistics import sample_std
from newllm.report.comparison_table import full_table
from newllm.report.length_figures import PROTOCOLS
from newllm.report.main_table import KINDS
from newllm.report.numbered import At, at_number
from newllm.report.reading import of_runs, table
from newllm.report.study import Part, by_seed, mean_of
from newllm.report.table import Cell, Column, Table, figure, spread, words

# Metric -> title of its table, and what its numbers mean.
_TITLES = {
    "extrapolation/ppl": ("Perplexity by length: sequential slices",
                          "Each length scores another stretch of text: compare groups within a column, not columns."),
    "extrapolation/tail_ppl": ("Perplexity by length: the same last tokens",
                               "All lengths score the same tokens, with more and more text before them."),
    "extrapolation/sliding_ppl": ("Perplexity by length: sliding window",
                                  "Each window scores its last stride only, with much text before every token."),
    "passkey/accuracy": ("Passkey by length: accuracy", "Chance is 0.5."),
    "distance/accuracy": ("Retrieval by distance: accuracy", "Chance is 0.5."),
}  # fmt: skip
# Metrics that are judged together: Holm's correction runs over all of a line's comparisons.
_FAMILIES = (
    tuple(PROTOCOLS.values()),
    (r"passkey/accuracy@(\d+)",),
    (r"distance/accuracy@(\d+)",),
    (r"ruler/[\w-]+@(\d+)",),
)


def at_each_length(part: Part, rule: Rule) -> tuple[list[Table], list[Table]]:
    """A table per measure, groups by lengths, with the verdict against the baseline; and all comparisons in full."""
    tables: list[Table] = []
    everything: list[Comparison] = []
    for family in _FAMILIES:
        found = [at_number(part, pattern) for pattern in family]
        judged = _judged(part, [metric for at in found for _, metric in at], rule)
        everything += judged
        for at in found:
            if at and (name := at[0][1].rpartition("@")[0]) in _TITLES:
                tables.append(_by_length(part, name, at, judged))
    full = []
    if everything:
        title = part.named(f"Comparisons with {everything[0].baseline} at each length")
        notes = [rule.words, "Perplexities are corrected together, passkey, distance and ruler each by themselves."]
        full.append(full_table(f"length-comparisons{part.mark}", title, everything, part.options, notes))
    return tables, full


def ruler(part: Part) -> list[Table]:
    """Accuracy of each group and task at each length, with the task's chance."""
    found = at_number(part, r"ruler/[\w-]+@(\d+)")
    if not found:
        return []
    lengths = sorted({length for length, _ in found})
    tasks = list(dict.fromkeys(metric.removeprefix("ruler/").rpartition("@")[0] for _, metric in found))
    chance = _chance(part)
    columns = [Column("group"), Column("task"), Column("chance", numeric=True)]
    columns += [Column(f"{length:,.0f}", numeric=True, hint="accuracy in rows of so many tokens") for length in lengths]
    rows = []
    for task in tasks:
        for group in part.groups:
            cells = [_mean(group, f"ruler/{task}@{length:.0f}") for length in lengths]
            if any(cell.value is not None for cell in cells):
                by_chance = chance.get(task)
                shown = figure(by_chance, "chance", None if by_chance is None else f"{by_chance:.3g}")
                rows.append([words(group.label, "group"), words(task, "task"), shown, *cells])
    note = "Share of trials in which the right candidate is the likeliest; mean ± sample standard deviation over seeds."
    return [Table(f"ruler{part.mark}", part.named("Small retrieval tasks"), columns, rows, [note])]


def _judged(part: Part, metrics: Sequence[str], rule: Rule) -> list[Comparison]:
    if part.baseline is None:
        return []
    options = part.options
    return compare(part.groups, part.baseline, metrics, rule, confidence=options.confidence, interval=options.interval)


def _by_length(part: Part, name: str, at: At, judged: Sequence[Comparison]) -> Table:
    title, meaning = _TITLES[name]
    of = {(one.candidate, one.metric): one for one in judged}
    columns = [Column("group"), *(Column(f"{number:,.0f}", numeric=True, hint=metric) for number, metric in at)]
    rows = []
    for group in part.groups:
        cells = [_against(part, group, metric, of.get((group.label, metric))) for _, metric in at]
        if any(cell.value is not None for cell in cells):
            rows.append([words(group.label, "group"), *cells])
    notes = [meaning]
    if part.baseline:
        notes.append(
            f"The baseline {part.baseline.label} with its mean ± sample standard deviation; the others with their "
            f"difference to it and its {part.options.confidence:.0%} interval, paired by seed. "
            f"Holm's correction is over {len(judged)} comparisons."
        )
    return Table(f"{name.replace('/', '-')}{part.mark}", part.named(title), columns, rows, notes)


def _against(part: Part, group: Group, metric: str, one: Comparison | None) -> Cell:
    """The difference to the baseline with its verdict; of the baseline, and without one, the mean."""
    mean = _mean(group, metric)
    if one is None:
        return mean
    verdict = f" {one.verdict}" if one.verdict not in ("not shown", "one seed") else ""
    interval = f" [{_short(one, one.low)}, {_short(one, one.high)}]" if isfinite(one.low) else ""
    unit = " %" if one.scale == "log" else ""
    text = f"{_short(one, one.difference)}{unit}{interval}{verdict}"
    exact = {**mean.exact, f"{metric} difference": one.difference, f"{metric} low": one.low,
             f"{metric} high": one.high, f"{metric} p holm": one.p_holm, f"{metric} verdict": one.verdict}  # fmt: skip
    return Cell(text, mean.value, exact, kind=KINDS.get(one.verdict, "open"), hint=f"{mean.text}; {one.why}")


def _short(one: Comparison, value: float) -> str:
    return f"{100 * value:+.1f}" if one.scale == "log" else f"{value:+.3f}"


def _mean(group: Group, metric: str) -> Cell:
    values = by_seed(group, [metric])[:, 0]
    mean, std = mean_of(group, metric), sample_std(values)
    return figure(mean, f"{metric} mean", spread(mean, std))


def _chance(part: Part) -> dict[str, float]:
    """Task -> accuracy by guessing, from the first tables/ruler.csv that can be read."""
    for group in part.groups:
        for rows in of_runs(group, lambda path: table(path, "ruler")):
            return {row["task"]: float(row["chance"]) for row in rows}
    return {}
