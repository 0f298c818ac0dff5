"""The main table: a row per group with mean ± sample standard deviation, and what differs from the baseline."""

from math import isclose, isfinite
from typing import Any

from newllm.analysis.comparison import Comparison
from newllm.analysis.groups import Group
from newllm.analysis.labels import say
from newllm.analysis.metrics import lower_is_better
from newllm.analysis.statistics import sample_std
from newllm.console import number
from newllm.report.figures.style import COLOURS
from newllm.report.study import Part, by_seed, mean_of
from newllm.report.table import ABSENT, Cell, Column, Table, percent, spread, words

KINDS = {"better": "better", "worse": "worse"}


def main_table(part: Part) -> Table:
    """One row per group; the best mean of a column is bold."""
    options = part.options
    against = {one.candidate: one for one in part.comparisons if one.metric == options.compare[0]}
    columns = [Column("group"), Column("seeds", numeric=True), *_metric_columns(options.metrics[:1])]
    if against:
        shown = f"{options.confidence:.0%} interval, paired by seed"
        columns += [Column(f"Δ {options.compare[0]}", numeric=True, hint=shown), Column("verdict")]
    columns += _metric_columns(options.metrics[1:])
    best = {metric: _best(part, metric) for metric in options.metrics}
    rows = []
    for group in part.groups:
        means = [_mean(group, metric, group.label in best[metric]) for metric in options.metrics]
        verdict = _difference(group, part.baseline, against.get(group.label)) if against else []
        rows.append([_name(part, group), _seeds(group), means[0], *verdict, *means[1:]])
    notes = ["Mean ± sample standard deviation over seeds; the best mean is bold."]
    if against and part.baseline:
        notes.append(
            f"Δ is the difference to {part.baseline.label} with its {options.confidence:.0%} interval, paired by seed."
        )
    return Table(f"main{part.mark}", part.named("Groups"), columns, rows, notes)


def difference_words(one: Comparison) -> tuple[str, str]:
    """The difference and its interval, as percent where the comparison is by ratio."""
    say_it = percent if one.scale == "log" else _signed
    interval = f"[{say_it(one.low)}, {say_it(one.high)}]" if isfinite(one.low) else ABSENT
    return say_it(one.difference), interval


def verdict_cell(one: Comparison) -> Cell:
    return Cell(one.verdict, one.verdict, {"verdict": one.verdict}, kind=KINDS.get(one.verdict, "open"), hint=one.why)


def _metric_columns(metrics: list[str]) -> list[Column]:
    ways = {True: "lower is better", False: "higher is better", None: ""}
    return [Column(metric, numeric=True, hint=ways[lower_is_better(metric)]) for metric in metrics]


def _name(part: Part, group: Group) -> Cell:
    index = next((one.index for one in part.drawn if one.group is group), None)
    kind = f"swatch-{index % len(COLOURS)}" if index is not None and len(part.drawn) > 1 else ""
    settings = {
        key: value if value is None or isinstance(value, int | float) else say(value)
        for key, value in group.settings.items()
    }
    return Cell(group.label, group.label, {"group": group.label, **settings}, kind=kind)


def _seeds(group: Group) -> Cell:
    runs, seeds = len(group.positions), group.runs["seed"].nunique()
    return Cell(f"{seeds}" if runs == seeds else f"{seeds} ({runs} runs)", seeds, {"seeds": seeds, "runs": runs})


def _mean(group: Group, metric: str, best: bool) -> Cell:
    values = by_seed(group, [metric])[:, 0]
    mean, std = mean_of(group, metric), sample_std(values)
    exact: dict[str, Any] = {f"{metric} mean": mean, f"{metric} std": std}
    exact = {name: value if isfinite(value) else "" for name, value in exact.items()}
    if not len(values):
        return Cell(ABSENT, None, exact, kind="muted")
    constant = len(values) > 1 and std == 0  # a count, such as parameters: nothing is gained by ± 0
    return Cell(number(mean) if constant else spread(mean, std), mean, exact, bold=best)


def _best(part: Part, metric: str) -> set[str]:
    """Labels of the groups with the best mean; none where all are equal or no way is better."""
    lower = lower_is_better(metric)
    means = {group.label: mean for group in part.groups if isfinite(mean := mean_of(group, metric))}
    if lower is None or not means:
        return set()
    best = min(means.values()) if lower else max(means.values())
    first = {label for label, mean in means.items() if isclose(mean, best, rel_tol=1e-9)}
    return first if len(first) < len(means) else set()


def _difference(group: Group, baseline: Group | None, one: Comparison | None) -> list[Cell]:
    if group is baseline:
        return [Cell("baseline", 0.0, {"difference": 0.0}, kind="muted"), words(None)]
    if one is None or not isfinite(one.difference):
        why = one.why if one else "not compared"
        return [Cell(ABSENT, None, kind="muted", hint=why), words(None) if one is None else verdict_cell(one)]
    difference, interval = difference_words(one)
    exact: dict[str, Any] = {"difference": one.difference, "difference low": one.low, "difference high": one.high}
    exact = {name: value if isfinite(value) else "" for name, value in exact.items()}
    text = difference if interval == ABSENT else f"{difference} {interval}"
    return [Cell(text, one.difference, exact), verdict_cell(one)]


def _signed(value: float) -> str:
    return f"{value:+.4g}" if isfinite(value) else ABSENT
