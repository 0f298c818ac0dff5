"""Results beside published tables, and beside the same configurations run elsewhere."""

from typing import TYPE_CHECKING

from newllm.analysis.agreement import against, agreement
from newllm.analysis.published import beside_published
from newllm.report.study import Study
from newllm.report.table import Column, Table, figure, percent, spread, words

if TYPE_CHECKING:
    import pandas as pd

# Of a machine and its load, not of a model: no two result sets agree in them.
_MACHINE = ("speed/", "memory/")


def published_table(study: Study) -> Table | None:
    """Groups with the conditions of a published run, metric by metric; None where there are none."""
    found = beside_published([group for part in study.parts for group in part.groups])
    if not found:
        return None
    columns = [Column("group"), Column("published run"), Column("metric"), Column("n", numeric=True),
               Column("ours", numeric=True), Column("published", numeric=True),
               Column("runs", numeric=True, hint="published runs"), Column("difference", numeric=True),
               Column("source")]  # fmt: skip
    rows = [
        [
            words(one["group"], "group"),
            words(one["run"], "published run"),
            words(one["metric"], "metric"),
            figure(one["n"], "n"),
            figure(one["ours"], "ours", spread(one["ours"], one["std"])),
            figure(one["published"], "published", spread(one["published"], one["published_std"])),
            figure(one["published_n"], "published runs"),
            figure(one["difference"], "difference", percent(one["difference"])),
            words(f"{one['source']} ({one['status']})", "source"),
        ]
        for one in found
    ]
    note = (
        "Published numbers of several runs (seeds, repeats, machines) are their mean ± sample standard deviation. The "
        "difference is ours / published - 1."
    )
    return Table("published", "Distance to published tables", columns, rows, [note])


def agreement_tables(study: Study) -> tuple[list[Table], list[str]]:
    """The other result set: summed up by metric, and run by run for the metrics of the main table."""
    if study.against is None:
        return [], []
    twins = against(study.done, study.against)
    twins = twins[~twins["metric"].str.startswith(_MACHINE)]
    where = study.options.against
    if twins.empty:
        return [], [f"No run of {where} has the configuration and seed of a run here."]
    pairs = twins["signature"].nunique()
    line = f"{pairs:,} configurations with their seeds are in {where} too; differences are there / here - 1."
    columns = [Column("metric"), Column("runs", numeric=True), Column("equal", numeric=True, hint="to the last bit"),
               Column("mean difference", numeric=True), Column("largest difference", numeric=True)]  # fmt: skip
    rows = [
        [
            words(one.metric, "metric"),
            figure(one.runs, "runs"),
            figure(one.equal, "equal"),
            figure(one.mean, "mean difference", percent(one.mean)),
            figure(one.largest, "largest difference", percent(one.largest)),
        ]
        for one in agreement(twins).itertuples()
    ]
    summary = Table("agreement", "Same configuration, other result set", columns, rows)
    return [summary, _by_run(study, twins[twins["metric"].isin(study.options.metrics)])], [line]


def _by_run(study: Study, twins: "pd.DataFrame") -> Table:
    names = dict(zip(study.done["path"], study.done["run"], strict=True))
    columns = [Column("run"), Column("metric"), Column("here", numeric=True), Column("there", numeric=True),
               Column("difference", numeric=True)]  # fmt: skip
    rows = [
        [
            words(names[one.run_a], "run"),
            words(one.metric, "metric"),
            figure(one.a, "here"),
            figure(one.b, "there"),
            figure(one.difference, "difference", percent(one.difference)),
        ]
        for one in sorted(twins.itertuples(), key=lambda one: -abs(one.difference))[:200]
    ]
    return Table("agreement-runs", "Run by run, the farthest apart first", columns, rows)
