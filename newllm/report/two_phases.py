"""Runs with a first phase: what it reached, what the second made of it, and its course by iteration."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np

from newllm.analysis.groups import Group
from newllm.analysis.published import distance, reference_table
from newllm.analysis.statistics import sample_std
from newllm.report.drawing import Drawing, drawing
from newllm.report.figures.iterations import Course, iterations
from newllm.report.figures.series import over_seeds
from newllm.report.reading import of_runs, stacked, table
from newllm.report.section import Section
from newllm.report.study import Part, Study, by_seed, mean_of
from newllm.report.table import Cell, Column, Table, figure, spread, words

_FIRST = "phase1/iterations"
# Metric -> its column and what is to be said of it.
_COLUMNS = {
    "phase1/iterations": ("iterations", "passes of phase 1, the random start among them"),
    "phase1/loss": ("loss", "of the last iteration"),
    "phase1/bound": ("bound", "what the loss cannot go below with LayerNorm's first gains"),
    "phase1/converged": ("converged", "share of the contexts that the last iteration left where they were"),
    "phase1/reached": ("reached", "1 where the phase stopped by its rule, 0 where by its number of iterations"),
    "context/rank_share@train": ("rank train", "effective rank / width, of the contexts that phase 2 trains on"),
    "context/rank_share@val": ("rank val", "effective rank / width, of the true recurrence on validation text"),
    "context/parallel_cosine": ("cosine", "of contexts made in parallel with the true ones, mean"),
    "val/ppl": ("val/ppl", "lower is better"),
    "val/accuracy": ("val/accuracy", "share of the next tokens that are the likeliest"),
    "params/context_block": ("context block", "parameters trained in phase 1"),
    "params/token_block": ("token block", "parameters trained in phase 2"),
    "params/trainable": ("trainable", "in phase 2"),
    "params/total": ("total", "embeddings among them"),
    "speed/phase1_seconds": ("seconds", "of phase 1; a run that found it in the cache needed less"),
}


def two_phases(study: Study, lines: Sequence[str], figures: bool) -> Section:
    """Its section, empty where no run has a first phase; `lines` stand above it."""
    tables = [made for part in study.parts if (made := _table(part))]
    drawings = [one for part in study.drawn_parts for one in _course(part)] if figures else []
    return Section("phases", "Two phases", lines if drawings else (), tables, drawings)


def _table(part: Part) -> Table | None:
    """A row per group that has a first phase; columns that none of them has are left out."""
    there = [group for group in part.groups if isfinite(mean_of(group, _FIRST))]
    if not there:
        return None
    metrics = [metric for metric in _COLUMNS if any(isfinite(mean_of(group, metric)) for group in there)]
    columns = [Column("group"), Column("seeds", numeric=True)]
    columns += [Column(_COLUMNS[metric][0], numeric=True, hint=_COLUMNS[metric][1]) for metric in metrics]
    rows = [
        [words(group.label, "group"), figure(len(group.by_seed(_FIRST)), "seeds"),
         *(_mean(group, metric) for metric in metrics)]
        for group in there
    ]  # fmt: skip
    notes = [
        "Mean ± sample standard deviation over seeds. The loss is that of the last iteration, which its own step "
        "follows; a loss at its bound says that the contexts have no mean, not that they carry the text.",
        "Ranks are of noisy contexts made in parallel on the training side, of the true recurrence on the validation "
        "side.",
    ]
    return Table(f"phases{part.mark}", part.named("Two phases"), columns, rows, notes)


def _mean(group: Group, metric: str) -> Cell:
    values = by_seed(group, [metric])[:, 0]
    mean, std = mean_of(group, metric), sample_std(values)
    text = f"{mean:,.0f}" if metric.startswith("params/") else spread(mean, std) if std else None
    return figure(mean, f"{metric} mean", text)


def _course(part: Part) -> list[Drawing]:
    """Loss with its bound and share of converged contexts by iteration, of tables/phase1.csv."""
    courses = []
    for one in part.drawn:
        runs = of_runs(one.group, _iterations)
        if not runs:
            continue
        known = [bound for _, _, bound in runs if bound is not None]
        courses.append(
            Course(
                over_seeds(one.index, one.group.label, *stacked([loss for loss, _, _ in runs])),
                over_seeds(one.index, one.group.label, *stacked([share for _, share, _ in runs])),
                float(np.mean(known)) if known else None,
                _published(one.group),
            )
        )
    if not courses:
        return []
    beside = " Crosses are the published run of these conditions." if any(one.published for one in courses) else ""
    caption = (
        "Mean over seeds; the band is ± one sample standard deviation. Dashed: the loss's bound. Converged is the "
        f"share of contexts that moved by less than the threshold since the iteration before.{beside}"
    )
    title = part.named("Phase 1 by iteration")
    return [drawing(f"phases{part.mark}", title, iterations(courses), caption)]


def _iterations(path: Path) -> tuple[dict[float, float], dict[float, float], float | None] | None:
    """Loss and converged share by iteration, and the bound of the last one; None where it does not iterate."""
    rows = [row for row in table(path, "phase1") if row.get("iteration") and row.get("loss")]
    if not rows:
        return None
    loss = {float(row["iteration"]): float(row["loss"]) for row in rows}
    converged = {float(row["iteration"]): float(row["converged"]) for row in rows}
    bound = rows[-1].get("bound")
    return loss, converged, float(bound) if bound else None


def _published(group: Group) -> list[tuple[float, float, float]]:
    """(iteration, loss, converged) of the published run with the group's conditions, where its log was published."""
    runs = {line["run"] for line in distance(group.config, {"val/best_ppl": 1.0})}
    return [
        (float(line["iteration"]), float(line["loss"]), float(line["converged"]))
        for line in reference_table("context_token_phase1")
        if line["run"] in runs
    ]
