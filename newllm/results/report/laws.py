"""The scaling law: its fits as a table and its log-log plot."""

from collections.abc import Sequence

import numpy as np

from newllm.results.report.drawing import Drawing, drawing
from newllm.results.report.figures.scaling import Fitted, scaling
from newllm.results.report.figures.series import over_seeds
from newllm.results.report.study import COLOUR_CYCLE, Study
from newllm.results.report.table import ABSENT, Cell, Column, Table, figure, words
from newllm.results.scaling import Law, laws

ALPHA = "\u03b1"


def scaling_laws(study: Study, metric: str) -> tuple[list[Table], list[Drawing]]:
    """Nothing where no curve has three sizes."""
    found = laws(study.done, study.options.size, metric, study.options.confidence)
    if not found:
        return [], []
    return [_table(found)], [_drawing(found[: study.options.curves])]


def _table(found: Sequence[Law]) -> Table:
    confidence = found[0].fit.confidence
    columns = [
        Column("runs"),
        Column(ALPHA, numeric=True, hint="slope of ln y on ln x"),
        Column(f"{confidence:.0%} interval", numeric=True),
        Column("R²", numeric=True),
        Column("A", numeric=True, hint=f"y = A x^{ALPHA}"),
        Column("sizes", numeric=True),
        Column("n", numeric=True, hint="runs fitted"),
        Column("note"),
    ]
    rows = [
        [
            words(law.label, "runs"),
            figure(law.fit.slope, "alpha", f"{law.fit.slope:.4f}"),
            Cell(f"[{law.fit.low:.4f}, {law.fit.high:.4f}]" if np.isfinite(law.fit.low) else ABSENT, None,
                 {"low": law.fit.low, "high": law.fit.high}),
            figure(law.fit.r2, "r2", f"{law.fit.r2:.4f}"),
            figure(law.fit.factor, "factor", f"{law.fit.factor:.4g}"),
            figure(len(law.points), "sizes"),
            figure(law.fit.n, "n"),
            Cell(law.note or ABSENT, law.note or None, {"note": law.note}, kind="long"),
        ]
        for law in found
    ]  # fmt: skip
    note = f"Ordinary least squares of ln {found[0].metric} on ln {found[0].size} over all runs of a curve."
    return Table("scaling", f"{found[0].metric} = A · ({found[0].size})^{ALPHA}", columns, rows, [note])


def _drawing(found: Sequence[Law]) -> Drawing:
    fitted = []
    for place, law in enumerate(found):
        sizes = [x for x, _ in law.points]
        at = {x: [y for size, y in law.runs if size == x] for x in sizes}
        most = max(map(len, at.values()))
        rows = np.array([[*at[x], *[np.nan] * (most - len(at[x]))] for x in sizes]).T
        points = over_seeds(99 * COLOUR_CYCLE + place, law.label, sizes, rows, log=True)
        fitted.append(Fitted(points, law.fit.slope, law.fit.intercept))
    title = f"{found[0].metric} over {found[0].size}"
    caption = "Geometric mean over seeds, bars ± one sample standard deviation of logarithms; lines are the fits."
    return drawing("scaling", title, scaling(fitted, found[0].size, found[0].metric), caption)
