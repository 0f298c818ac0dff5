"""The main tables: groups, comparisons with the baseline, published tables, another result set, unfinished runs."""

from collections.abc import Sequence
from math import expm1, isclose, isfinite

from newllm.analysis.agreement import compare_groups, only_in_one, pair_runs, summarize
from newllm.analysis.comparison import Comparison, p_text, repeat_noise
from newllm.analysis.frame import load_runs
from newllm.analysis.labels import value_text
from newllm.analysis.metrics import lower_is_better, scale_of
from newllm.analysis.run_groups import Group
from newllm.report.figures import COLOURS
from newllm.report.study import Part, Section, Study
from newllm.report.tables import (
    ABSENT,
    PLUS_MINUS,
    Cell,
    Row,
    Table,
    difference_texts,
    make_row,
    mean_cell,
    number_cell,
    percent,
    percent_cell,
    spread,
    text_cell,
    verdict_cell,
)

OF_EVALUATIONS = (
    "Evaluations under other settings are compared with the same runs as trained, where these scored the same text, "
    "and corrected separately."
)
BOOTSTRAP = (
    "the BCa bootstrap, which hold less often than they say: of 20 seeds 93 % alone and 88 % of eight together, of 40 "
    "seeds 95 % and 92 % (docs/statistics.md); p-values are those of Student's t"
)
BEST_IS_BOLD = "the best mean is bold"
MOST_ROWS = 200  # of unfinished runs, and of runs compared with another result set
_MACHINE = ("speed/", "memory/")  # these depend on the machine and its load, so no two result sets agree in them
_COMPARISON_HINTS = {
    "pairs": "seeds that both have",
    "p corrected": "times the number of comparisons that are tested together",
    "agree": "seeds whose difference has the sign of the mean difference",
    "seeds needed": "for 80 % power at the observed effect and spread, under the same correction",
    "group's mean": "over the paired seeds, ± sample standard deviation",
    "baseline's mean": "over the paired seeds, ± sample standard deviation",
    "spread": "sample standard deviation of the paired differences",
    "t": "paired t-test",
    "left out": "seeds that only one of the two has",
}
_SCALES = {
    "log": "Perplexities and other ratios are compared by their logarithms: the difference is the ratio of geometric "
    "means less one, the spread that of logarithms.",
    "difference": "Other metrics are compared by plain differences in their own unit.",
}


def results(study: Study) -> list[Section]:
    """Two sections: a row per group with mean ± sample standard deviation and its difference from the baseline; then
    every number behind a verdict, the rule in words, and the noise of repeats."""
    lines = [*_missing_seeds(study), *([study.reason] if study.reason else [])]
    lines += [note for part in study.parts for note in part.baseline.notes]
    baselines = dict.fromkeys(group for part in study.parts for group in part.baseline.pairs.values())
    if alone := dict.fromkeys(group.label for group in baselines if group.runs["seed"].nunique() == 1):
        lines.append(
            f"A baseline has one seed ({', '.join(alone)}), which says nothing about other seeds: what is compared "
            "with it has no verdict."
        )
    tables, comparison_tables = [], []
    for part in study.parts:
        comparisons = part.compared(part.options.compare)
        family = study.family_in_words(part, part.options.compare)
        if part.whole or any(group.by_seed(name) for name in part.options.metrics for group in part.groups):
            tables.append(_groups_table(part, comparisons, family))
        if comparisons:
            title = f"Comparisons with {part.baseline.words}"
            comparison_tables.append(comparison_table("comparisons", title, part, comparisons, family))
    repeats = [_repeats(study)] if comparison_tables else []
    return [
        Section("results", "Results", lines, tables),
        Section("comparisons", "Which differences are real", repeats, comparison_tables),
    ]


def _missing_seeds(study: Study) -> list[str]:
    """A sentence for each group of which seeds diverged, failed or gave no finite number."""
    lines = []
    for part in (part for part in study.parts if part.whole):
        for group in part.groups:
            metrics: dict[str, list[str]] = {}
            for name in dict.fromkeys([part.metric, *part.options.compare, *part.options.metrics]):
                metrics.setdefault(group.missing_words(name), []).append(name)
            for words, names in metrics.items():
                if words:
                    so = "its mean is never the best"
                    if not {*names}.isdisjoint(part.options.compare):
                        who = "what is compared with it" if group.label in part.baseline.labels else "it"
                        so = f"{who} has no verdict, and {so}"
                    lines.append(f"{part.named(group.label)}: {words} ({names[0]}), so {so}.")
    return lines


def _groups_table(part: Part, comparisons: Sequence[Comparison], family: str) -> Table:
    options, compared = part.options, {}
    first, *others = options.metrics
    confidence = f"{100 * options.confidence:.4g} % interval"
    notes = [f"{PLUS_MINUS}; {BEST_IS_BOLD}."]
    ways = {True: "lower is better", False: "higher is better", None: ""}
    hints = {metric: ways[lower_is_better(metric)] for metric in options.metrics}
    if comparisons:
        delta = f"Δ {options.compare[0]}"
        compared = {c.candidate: c for c in comparisons if c.metric == options.compare[0]}
        notes.append(f"Δ is the difference to {part.baseline.words}, with its {confidence}, paired by seed.")
        notes += [f"Intervals by {BOOTSTRAP}."] if options.interval == "bootstrap" else []
        notes += [family] if family else []
        if part.baseline.evaluations:
            notes.append(OF_EVALUATIONS)
        hints[delta] = f"{confidence}, paired by seed"
    best = {metric: _best_groups(part, metric) for metric in options.metrics}
    drawn = part.drawn if len(part.drawn) > 1 else []
    swatches = {one.group: f"swatch-{one.index % len(COLOURS)}" for one in drawn}
    rows = []
    for group in part.groups:
        settings = {
            key: v if v is None or isinstance(v, int | float) else value_text(v) for key, v in group.settings.items()
        }
        missing = group.missing_words(part.metric)
        seeds, runs = group.runs["seed"].nunique(), len(group.positions)
        text = f"{seeds}" if runs == seeds else f"{seeds} ({runs} runs)"
        if missing:
            seeds = len(group.by_seed(part.metric))
            text = f"{seeds} of {seeds + len(group.missing(part.metric))}"
        means = {metric: mean_cell(group, metric, bold=group in best[metric]) for metric in options.metrics}
        row = {
            "group": Cell(group.label, group.label, {"group": group.label, **settings}, kind=swatches.get(group, "")),
            "seeds": Cell(text, seeds, {"seeds": seeds, "runs": runs, "missing": missing}, hint=missing),
            first: means[first],
        }
        if compared:
            is_baseline = group.label in part.baseline.labels
            row[delta], row["verdict"] = _difference_and_verdict(compared.get(group.label), is_baseline)
        rows.append({**row, **{metric: means[metric] for metric in others}})
    return Table(f"main{part.mark}", part.named("Groups"), rows, notes, hints)


def _best_groups(part: Part, metric: str) -> set[Group]:
    """The groups with the best mean; none where all are equal or no direction is better."""
    lower = lower_is_better(metric)
    means = {group: mean for group in part.groups if isfinite(mean := group.mean(metric))}
    if lower is None or not means:
        return set()
    best = min(means.values()) if lower else max(means.values())
    first = {group for group, mean in means.items() if isclose(mean, best, rel_tol=1e-9)}
    return first if len(first) < len(means) else set()


def _difference_and_verdict(comparison: Comparison | None, is_baseline: bool) -> tuple[Cell, Cell]:
    if comparison is None and is_baseline:
        return Cell("baseline", 0.0, {"difference": 0.0}, kind="muted"), text_cell(None)
    if comparison is None:
        return Cell(ABSENT, kind="muted", hint="not compared"), text_cell(None)
    verdict = verdict_cell(comparison)
    if not isfinite(comparison.difference):
        return Cell(ABSENT, kind="muted", hint=comparison.why), verdict
    difference, interval = difference_texts(comparison)
    csv = {"difference": comparison.difference, "difference low": comparison.low, "difference high": comparison.high}
    return Cell(difference if interval == ABSENT else f"{difference} {interval}", comparison.difference, csv), verdict


def comparison_table(name: str, title: str, part: Part, comparisons: Sequence[Comparison], family: str) -> Table:
    """Every number of some comparisons of a part. family: what their intervals hold for, "" if none was tested."""
    method = {"t": "Student's t", "bootstrap": BOOTSTRAP}[part.options.interval]
    scales = [_SCALES[scale] for scale in dict.fromkeys(comparison.scale for comparison in comparisons)]
    notes = [*scales, f"Intervals by {method}.", part.options.rule.words, *([family] if family else [])]
    rows = [_comparison_row(comparison, len(part.baseline.labels) > 1) for comparison in comparisons]
    if part.baseline.evaluations:
        notes.append(OF_EVALUATIONS)
    return Table(f"{name}{part.mark}", part.named(title), rows, notes, _COMPARISON_HINTS)


def _comparison_row(comparison: Comparison, name_baseline: bool) -> Row:
    names = {"group": comparison.candidate, "baseline": comparison.baseline}

    def mean(mean: float, std: float, whose: str) -> Cell:
        return Cell(spread(mean, std), mean if isfinite(mean) else None, {f"{whose} mean": mean, f"{whose} std": std})

    return make_row({
        "group": Cell(comparison.candidate, comparison.candidate, names),
        **({"baseline": Cell(comparison.baseline, comparison.baseline, kind="name")} if name_baseline else {}),
        "metric": comparison.metric,
        "pairs": comparison.n,
        **comparison_cells(comparison),
        "group's mean": mean(comparison.candidate_mean, comparison.candidate_std, "group"),
        "baseline's mean": mean(comparison.baseline_mean, comparison.baseline_std, "baseline"),
        "spread": comparison.spread,
        "t": number_cell(comparison.t, "t", f"{comparison.t:.2f}"),
        "p": number_cell(comparison.p, "p", p_text(comparison.p)),
        "left out": comparison.unpaired,
        "why": text_cell(comparison.why, "why", kind="long"),
    })  # fmt: skip


def comparison_cells(comparison: Comparison) -> Row:
    """The difference with its interval, the verdict and what it stands on."""
    difference, interval = difference_texts(comparison)
    ends = {"scale": comparison.scale, "difference low": comparison.low, "difference high": comparison.high}
    pairs = len(comparison.differences)
    return {
        "difference": number_cell(comparison.difference, "difference", difference),
        "interval": Cell(interval, comparison.low if isfinite(comparison.low) else None, ends),
        "verdict": verdict_cell(comparison),
        "p corrected": number_cell(comparison.p_corrected, "p corrected", p_text(comparison.p_corrected)),
        "agree": number_cell(comparison.agree if pairs else None, "agree", f"{comparison.agree} of {pairs}"),
        "seeds needed": number_cell(comparison.seeds_needed, "seeds needed"),
    }


def _repeats(study: Study) -> str:
    """A sentence on the spread of runs with the same configuration and seed."""
    metric = study.options.main_metric
    noise = repeat_noise(study.done, metric)
    if not noise.groups:
        return "Repeat noise is not known: no two runs have the same configuration (evaluators included) and seed."
    plural, were = ("s", "were") if noise.groups > 1 else ("", "was")
    repeated = f"{noise.groups} combination{plural} of configuration and seed {were} run more than once"
    sentence = f"Repeat noise: {repeated} ({noise.values} runs); "
    if noise.std == 0:
        return f"{sentence}they agree in {metric} to the last digit."
    log, relative = ("ln ", f" ({percent(expm1(noise.std)).lstrip('+')})") if scale_of(metric) == "log" else ("", "")
    return f"{sentence}their pooled standard deviation of {log}{metric} is {noise.std:.3g}{relative}."


def published(study: Study) -> Section:
    """Groups with the conditions of a published run, metric by metric."""
    rows = [
        make_row({
            "group": group.label,
            "published run": line.run.run,
            "metric": line.metric,
            "n": text_cell(f"{len(values)}, {missing}", "n") if missing else len(values),
            "ours": number_cell(line.ours, "ours", spread(line.ours, line.run.std(values))),
            "published": number_cell(line.published, "published", spread(line.published, line.std)),
            "runs": number_cell(len(line.numbers), "published runs"),
            "difference": percent_cell(line.difference, "difference"),
            "source": f"{line.run.source} ({line.run.status})",
        })
        for group, line in compare_groups(group for part in study.parts for group in part.groups)
        for values, missing in [([*group.by_seed(line.metric).values()], group.missing_words(line.metric))]
    ]  # fmt: skip
    note = (
        "Numbers of several runs (seeds, repeats, machines) are their mean ± standard deviation, that of the published "
        "table: of the population (ddof=0) for the RoPE frequencies, else of the sample (ddof=1). The "
        "difference is ours / published - 1."
    )
    table = Table("published", "Distance to published tables", rows, [note], {"runs": "published runs"})
    return Section("published", "Published tables", (), [table] if rows else [])


def other_results(study: Study) -> Section:
    """The same configurations and seeds in another result set: by metric, and run by run for the main metrics."""
    folder, title = study.options.against, "Another result set"
    if folder is None:
        return Section("agreement", title)
    other, metric = load_runs(folder), study.options.main_metric
    pairs, lost = pair_runs(study.done, other), only_in_one(study.frame, other, metric)
    pairs = pairs[~pairs["metric"].str.startswith(_MACHINE)]
    if pairs.empty:
        return Section("agreement", title, [f"No run of {folder} has the configuration and seed of a run here."])
    shared = pairs["signature"].nunique()
    line = f"{shared:,} configurations with their seeds are in {folder} too; differences are there / here - 1."
    if lost:
        line += (
            f" {lost:,} have {metric} on one side only, since the other one diverged or failed: they are not compared."
        )
    by_metric = [
        make_row({
            "metric": agreement.metric,
            "runs": agreement.runs,
            "equal": agreement.equal,
            "mean difference": percent_cell(agreement.mean, "mean difference"),
            "largest difference": percent_cell(agreement.largest, "largest difference"),
        })
        for agreement in summarize(pairs).itertuples()
    ]  # fmt: skip
    names = dict(zip(study.done["path"], study.done["run"], strict=True))
    main = pairs[pairs["metric"].isin(study.options.metrics)]
    by_run = [
        make_row({
            "run": names[pair.run_a],
            "metric": pair.metric,
            "here": pair.a,
            "there": pair.b,
            "difference": percent_cell(pair.difference, "difference"),
        })
        for pair in sorted(main.itertuples(), key=lambda pair: -abs(pair.difference))[:MOST_ROWS]
    ]  # fmt: skip
    tables = [
        Table("agreement", "Same configuration, other result set", by_metric, hints={"equal": "to the last bit"}),
        Table("agreement-runs", "Run by run, largest difference first", by_run),
    ]
    return Section("agreement", title, [line], [table for table in tables if table.rows])


def unfinished(study: Study) -> Section:
    """Runs that are in none of the tables, the unreadable and failed ones first: their state, and why."""
    order = ["unreadable", "failed", "interrupted", "running", "queued"]
    runs = study.frame[study.frame["state"] != "done"]
    ranked = sorted(runs.itertuples(), key=lambda run: order.index(run.state) if run.state in order else len(order))
    rows = [
        make_row({
            **{name: getattr(run, name) for name in ("run", "sweep", "state")},
            "reason": text_cell(run.error if isinstance(run.error, str) else "", "reason", kind="long"),
        })
        for run in ranked[:MOST_ROWS]
    ]  # fmt: skip
    notes = [f"{len(runs) - MOST_ROWS:,} more are in the table of runs."] if len(runs) > MOST_ROWS else []
    tables = [Table("unfinished", "State and reason", rows, notes)] if rows else []
    return Section("unfinished", "Runs without results", (), tables)
