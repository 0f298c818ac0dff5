"""Results as tables: groups, comparisons with the baseline, published tables, another result set, unfinished runs."""

from collections.abc import Sequence
from math import expm1, isclose, isfinite
from typing import Any

from newllm.analysis.agreement import against, agreement
from newllm.analysis.comparison import Comparison, repeat_noise
from newllm.analysis.frame import load_runs
from newllm.analysis.labels import say
from newllm.analysis.metrics import lower_is_better, scale_of
from newllm.analysis.published import beside_published
from newllm.analysis.run_groups import Group
from newllm.analysis.statistics import sample_std
from newllm.console import number
from newllm.report.figures import COLOURS
from newllm.report.study import Part, Section, Study
from newllm.report.tables import ABSENT, PLUS_MINUS, Cell, Row, Table, number_cell, percent, spread, text_cell

MOST_ROWS = 200  # of unfinished runs and of runs beside another result set
_MACHINE = ("speed/", "memory/")  # these depend on the machine and its load, so no two result sets agree in them
_COMPARISON_HINTS = {
    "pairs": "seeds that both have",
    "p (Holm)": "corrected for all comparisons of this table",
    "agree": "seeds whose difference has the sign of the mean difference",
    "seeds needed": "for 80 % power at the observed effect",
    "group's mean": "over the paired seeds, ± sample standard deviation",
    "baseline's mean": "over the paired seeds, ± sample standard deviation",
    "spread": "sample standard deviation of the paired differences",
    "t": "paired t-test",
    "left out": "seeds that only one of the two has",
}


def groups(study: Study) -> Section:
    """A row per group with mean ± sample standard deviation, and what differs from the baseline."""
    lines = [study.reason] if study.reason else []
    if any(part.baseline.runs["seed"].nunique() < 2 for part in study.parts if part.baseline):
        lines.append("The baseline has one seed, which says nothing about other seeds: there are no verdicts.")
    return Section("results", "Results", lines, [_groups(part) for part in study.parts])


def comparisons(study: Study) -> Section:
    """Every number behind a verdict, the rule in words, and the noise of repeats."""
    tables = []
    for part in study.parts:
        if found := part.compare(part.options.compare):
            title = part.named(f"Comparisons with {found[0].baseline}")
            tables.append(comparison_table(f"comparisons{part.mark}", title, part, found, [study.options.rule.words]))
    return Section("comparisons", "Which differences are real", [_repeats(study)] if tables else (), tables)


def published(study: Study) -> Section:
    """Groups with the conditions of a published run, metric by metric."""
    rows = [
        {
            "group": text_cell(one["group"], "group"),
            "published run": text_cell(one["run"], "published run"),
            "metric": text_cell(one["metric"], "metric"),
            "n": number_cell(one["n"], "n"),
            "ours": number_cell(one["ours"], "ours", spread(one["ours"], one["std"])),
            "published": number_cell(one["published"], "published", spread(one["published"], one["published_std"])),
            "runs": number_cell(one["published_n"], "published runs"),
            "difference": number_cell(one["difference"], "difference", percent(one["difference"])),
            "source": text_cell(f"{one['source']} ({one['status']})", "source"),
        }
        for one in beside_published([group for part in study.parts for group in part.groups])
    ]
    note = (
        "Published numbers of several runs (seeds, repeats, machines) are their mean ± sample standard deviation. The "
        "difference is ours / published - 1."
    )
    table = Table("published", "Distance to published tables", rows, [note], {"runs": "published runs"})
    return Section("published", "Published tables", (), [table] if rows else [])


def other_results(study: Study) -> Section:
    """The same configurations and seeds in another result set: by metric, and run by run for the main metrics."""
    where, title = study.options.against, "Another result set"
    if where is None:
        return Section("agreement", title)
    pairs = against(study.done, load_runs(where))
    pairs = pairs[~pairs["metric"].str.startswith(_MACHINE)]
    if pairs.empty:
        return Section("agreement", title, [f"No run of {where} has the configuration and seed of a run here."])
    shared = pairs["signature"].nunique()
    line = f"{shared:,} configurations with their seeds are in {where} too; differences are there / here - 1."
    by_metric = [
        {
            "metric": text_cell(one.metric, "metric"),
            "runs": number_cell(one.runs, "runs"),
            "equal": number_cell(one.equal, "equal"),
            "mean difference": number_cell(one.mean, "mean difference", percent(one.mean)),
            "largest difference": number_cell(one.largest, "largest difference", percent(one.largest)),
        }
        for one in agreement(pairs).itertuples()
    ]
    names = dict(zip(study.done["path"], study.done["run"], strict=True))
    main = pairs[pairs["metric"].isin(study.options.metrics)]
    by_run = [
        {
            "run": text_cell(names[one.run_a], "run"),
            "metric": text_cell(one.metric, "metric"),
            "here": number_cell(one.a, "here"),
            "there": number_cell(one.b, "there"),
            "difference": number_cell(one.difference, "difference", percent(one.difference)),
        }
        for one in sorted(main.itertuples(), key=lambda one: -abs(one.difference))[:MOST_ROWS]
    ]
    hints = {"equal": "to the last bit"}
    tables = [
        Table("agreement", "Same configuration, other result set", by_metric, hints=hints),
        Table("agreement-runs", "Run by run, largest difference first", by_run),
    ]
    return Section("agreement", title, [line], [table for table in tables if table.rows])


def unfinished(study: Study) -> Section:
    """Runs that are no part of the tables, the unreadable and failed ones first: in what state, and why."""
    order = ["unreadable", "failed", "interrupted", "running", "queued"]
    runs = study.frame[study.frame["state"] != "done"]
    ranked = sorted(runs.itertuples(), key=lambda run: order.index(run.state) if run.state in order else len(order))
    rows = [
        {
            **{name: text_cell(getattr(run, name), name) for name in ("run", "sweep", "state")},
            "reason": text_cell(run.error if isinstance(run.error, str) else "", "reason", kind="long"),
        }
        for run in ranked[:MOST_ROWS]
    ]
    notes = [f"{len(runs) - MOST_ROWS:,} more are in the table of runs."] if len(runs) > MOST_ROWS else []
    tables = [Table("unfinished", "State and reason", rows, notes)] if rows else []
    return Section("unfinished", "Runs without results", (), tables)


def verdict_cell(one: Comparison) -> Cell:
    return text_cell(one.verdict, "verdict", kind=verdict_kind(one), hint=one.why)


def verdict_kind(one: Comparison) -> str:
    return one.verdict if one.verdict in ("better", "worse") else "open"


def comparison_table(
    name: str, title: str, part: Part, comparisons: Sequence[Comparison], notes: Sequence[str]
) -> Table:
    """Every number of some comparisons; `notes` stand last below them."""
    said = {
        "log": "Perplexities and other ratios are compared by their logarithms: the difference is the ratio of "
        "geometric means less one, the spread that of logarithms.",
        "difference": "Other metrics are compared by plain differences in their own unit.",
    }
    how = {"t": "Student's t", "bootstrap": "the BCa bootstrap"}[part.options.interval]
    scales = [said[scale] for scale in dict.fromkeys(one.scale for one in comparisons)]
    notes = [*scales, f"Intervals of {part.options.confidence:.0%} by {how}.", *notes]
    return Table(name, title, [_comparison(one) for one in comparisons], notes, _COMPARISON_HINTS)


def _comparison(one: Comparison) -> Row:
    difference, interval = _difference_words(one)
    ends = {"scale": one.scale, "difference low": one.low, "difference high": one.high}

    def mean(mean: float, std: float, whose: str) -> Cell:
        exact = {f"{whose} mean": mean, f"{whose} std": _or_blank(std)}
        return Cell(spread(mean, std), mean if isfinite(mean) else None, exact)

    def p(value: float, column: str) -> Cell:
        return number_cell(value, column, "< 0.0001" if value < 1e-4 else f"{value:.2g}")

    return {
        "group": Cell(one.candidate, one.candidate, {"group": one.candidate, "baseline": one.baseline}),
        "metric": text_cell(one.metric, "metric"),
        "pairs": number_cell(one.n, "pairs"),
        "difference": number_cell(one.difference, "difference", difference),
        "interval": Cell(interval, one.low if isfinite(one.low) else None, ends),
        "verdict": verdict_cell(one),
        "p (Holm)": p(one.p_holm, "p holm"),
        "agree": number_cell(one.agree, "agree", f"{one.agree} of {one.n}"),
        "seeds needed": number_cell(one.seeds_needed, "seeds needed"),
        "group's mean": mean(one.candidate_mean, one.candidate_std, "group"),
        "baseline's mean": mean(one.baseline_mean, one.baseline_std, "baseline"),
        "spread": number_cell(one.spread, "spread"),
        "t": number_cell(one.t, "t", f"{one.t:.2f}"),
        "p": p(one.p, "p"),
        "left out": number_cell(one.unpaired, "left out"),
        "why": text_cell(one.why, "why", kind="long"),
    }


def _groups(part: Part) -> Table:
    options = part.options
    confidence = f"{options.confidence:.0%} interval"
    compared = {one.candidate: one for one in part.compare(part.options.compare) if one.metric == options.compare[0]}
    best = {metric: _best(part, metric) for metric in options.metrics}
    shown = {one.group.label: f"swatch-{one.index % len(COLOURS)}" for one in part.drawn} if len(part.drawn) > 1 else {}
    first, *others = options.metrics
    rows = []
    for group in part.groups:
        means = {metric: _mean(group, metric, group.label in best[metric]) for metric in options.metrics}
        exact = {key: v if v is None or isinstance(v, int | float) else say(v) for key, v in group.settings.items()}
        runs, seeds = len(group.positions), group.runs["seed"].nunique()
        text = f"{seeds}" if runs == seeds else f"{seeds} ({runs} runs)"
        row = {
            "group": Cell(group.label, group.label, {"group": group.label, **exact}, kind=shown.get(group.label, "")),
            "seeds": Cell(text, seeds, {"seeds": seeds, "runs": runs}),
            first: means[first],
        }
        if compared:
            delta, verdict = _difference(group, part.baseline, compared.get(group.label))
            row |= {f"Δ {options.compare[0]}": delta, "verdict": verdict}
        rows.append({**row, **{metric: means[metric] for metric in others}})
    notes = [f"{PLUS_MINUS}; the best mean is bold."]
    if compared and part.baseline:
        notes.append(f"Δ is the difference to {part.baseline.label} with its {confidence}, paired by seed.")
    ways = {True: "lower is better", False: "higher is better", None: ""}
    hints = {metric: ways[lower_is_better(metric)] for metric in options.metrics}
    hints |= {f"Δ {options.compare[0]}": f"{confidence}, paired by seed"} if compared else {}
    return Table(f"main{part.mark}", part.named("Groups"), rows, notes, hints)


def _mean(group: Group, metric: str, best: bool) -> Cell:
    values = [*group.by_seed(metric).values()]
    mean, std = group.mean(metric), sample_std(values)
    exact = {f"{metric} mean": _or_blank(mean), f"{metric} std": _or_blank(std)}
    if not values:
        return Cell(ABSENT, None, exact, kind="muted")
    constant = std == 0  # a count, such as parameters: ± 0 would say nothing
    return Cell(number(mean) if constant else spread(mean, std), mean, exact, bold=best)


def _best(part: Part, metric: str) -> set[str]:
    """Labels of the groups with the best mean; none where all are equal or no direction is better."""
    lower = lower_is_better(metric)
    means = {group.label: mean for group in part.groups if isfinite(mean := group.mean(metric))}
    if lower is None or not means:
        return set()
    best = min(means.values()) if lower else max(means.values())
    first = {label for label, mean in means.items() if isclose(mean, best, rel_tol=1e-9)}
    return first if len(first) < len(means) else set()


def _difference(group: Group, baseline: Group | None, one: Comparison | None) -> tuple[Cell, Cell]:
    if group is baseline:
        return Cell("baseline", 0.0, {"difference": 0.0}, kind="muted"), text_cell(None)
    if one is None:
        return Cell(ABSENT, kind="muted", hint="not compared"), text_cell(None)
    if not isfinite(one.difference):
        return Cell(ABSENT, kind="muted", hint=one.why), verdict_cell(one)
    difference, interval = _difference_words(one)
    exact: dict[str, Any] = {"difference": one.difference}
    exact |= {"difference low": _or_blank(one.low), "difference high": _or_blank(one.high)}
    text = difference if interval == ABSENT else f"{difference} {interval}"
    return Cell(text, one.difference, exact), verdict_cell(one)


def _difference_words(one: Comparison) -> tuple[str, str]:
    """The difference and its interval, as percent where the comparison is by ratio."""

    def said(value: float) -> str:
        return percent(value) if one.scale == "log" else f"{value:+.4g}" if isfinite(value) else ABSENT

    return said(one.difference), f"[{said(one.low)}, {said(one.high)}]" if isfinite(one.low) else ABSENT


def _repeats(study: Study) -> str:
    """A sentence on the spread of runs with the same configuration and seed."""
    metric = study.options.main_metric
    found = repeat_noise(study.done, metric)
    if not found.groups:
        return "Repeat noise is not known: no configuration was run twice with one seed."
    several = f"{found.groups} configurations with one seed were"
    many = several if found.groups > 1 else "One configuration and seed was"
    said = f"Repeat noise: {many} run more than once ({found.values} runs); "
    if found.std == 0:
        return f"{said}they agree in {metric} to the last digit."
    log, relative = ("ln ", f" ({percent(expm1(found.std)).lstrip('+')})") if scale_of(metric) == "log" else ("", "")
    return f"{said}their pooled standard deviation of {log}{metric} is {found.std:.3g}{relative}."


def _or_blank(value: float) -> float | str:
    return value if isfinite(value) else ""
