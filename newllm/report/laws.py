"""The scaling law: its fits as a table and its log-log plot, and the power law with a floor."""

from collections.abc import Sequence

import numpy as np

from newllm.analysis.scaling import Fit, Law, Saturation, laws, saturating
from newllm.report.drawing import Drawing, drawing
from newllm.report.figures.scaling import Fitted, scaling
from newllm.report.figures.series import over_seeds
from newllm.report.study import COLOUR_CYCLE, Study
from newllm.report.table import ABSENT, Cell, Column, Table, figure, words

ALPHA = "\u03b1"


def scaling_laws(study: Study, metric: str) -> tuple[list[Table], list[Drawing]]:
    """Nothing where no curve has three sizes."""
    found = laws(study.done, study.options.size, metric, study.options.confidence)
    if not found:
        return [], []
    tables = [_table(found)]
    floors = [saturating(*zip(*law.runs, strict=True)) for law in found] if study.options.law == "saturating" else None
    if floors is not None:
        tables.append(_floors(found, floors))
    return tables, [_drawing(found[: study.options.curves], floors)]


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
        Column("p of misfit", numeric=True, hint="below 0.05 the means do not lie on a line"),
        Column("note"),
    ]
    rows = [
        [
            words(law.label, "runs"),
            figure(law.fit.slope, "alpha", f"{law.fit.slope:.4f}"),
            interval(law.fit),
            figure(law.fit.r2, "r2", f"{law.fit.r2:.4f}"),
            figure(law.fit.factor, "factor", f"{law.fit.factor:.4g}"),
            figure(len(law.points), "sizes"),
            figure(law.fit.n, "n"),
            figure(law.misfit, "misfit", f"{law.misfit:.2g}"),
            Cell(law.note or ABSENT, law.note or None, {"note": law.note}, kind="long"),
        ]
        for law in found
    ]  # fmt: skip
    notes = [f"Ordinary least squares of ln {found[0].metric} on ln {found[0].size} over all runs of a curve."]
    if any(np.isfinite(law.misfit) for law in found):
        notes.append(
            "p of misfit: the F-test of a line through the sizes' means, by the scatter of their runs. Where it is "
            f"small, these sizes follow no power law: {ALPHA} and its interval only say how steep the points are "
            "on the whole. What other training texts would give, the scatter of seeds does not say."
        )
    return Table("scaling", f"{found[0].metric} = A · ({found[0].size})^{ALPHA}", columns, rows, notes)


def interval(fitted: Fit) -> Cell:
    """Of the exponent."""
    if not np.isfinite(fitted.low):
        return Cell(ABSENT, None, {"low": "", "high": ""}, kind="muted")
    return Cell(f"[{fitted.low:.4f}, {fitted.high:.4f}]", None, {"low": fitted.low, "high": fitted.high})


def _floors(found: Sequence[Law], floors: Sequence[Saturation]) -> Table:
    columns = [
        Column("runs"),
        Column("floor", numeric=True, hint="y where the size has no end"),
        Column("a", numeric=True, hint="exponent, below 0"),
        Column("A", numeric=True),
        Column("R²", numeric=True),
        Column("AIC", numeric=True),
        Column("AIC of the power law", numeric=True),
        Column("preferred"),
    ]
    rows = [
        [
            words(law.label, "runs"),
            figure(one.floor, "floor", f"{one.floor:.4g}" if one.floor > 1e-3 else "0"),
            figure(one.slope, "slope", f"{one.slope:.4f}"),
            figure(one.factor, "factor", f"{one.factor:.4g}"),
            figure(one.r2, "r2", f"{one.r2:.5f}"),
            figure(one.aic, "aic", f"{one.aic:.2f}"),
            figure(one.aic_power, "aic power", f"{one.aic_power:.2f}"),
            words(("with a floor" if one.preferred else "power law") if np.isfinite(one.aic) else "", "preferred"),
        ]
        for law, one in zip(found, floors, strict=True)
    ]
    notes = [
        f"Least squares of {found[0].metric} itself over all runs of a curve, for both laws; the lower AIC is "
        "preferred. A curve of fewer than four sizes has none.",
    ]
    return Table("scaling-floor", f"{found[0].metric} = floor + A · ({found[0].size})^a", columns, rows, notes)


def _drawing(found: Sequence[Law], floors: Sequence[Saturation] | None) -> Drawing:
    fitted = []
    for place, law in enumerate(found):
        sizes = [x for x, _ in law.points]
        at = {x: [y for size, y in law.runs if size == x] for x in sizes}
        most = max(map(len, at.values()))
        rows = np.array([[*at[x], *[np.nan] * (most - len(at[x]))] for x in sizes]).T
        points = over_seeds(99 * COLOUR_CYCLE + place, law.label, sizes, rows, log=True)
        one = floors[place] if floors is not None else None
        if one is not None and one.preferred:
            fitted.append(Fitted(points, one.slope, float(np.log(one.factor)), one.floor))
        else:
            fitted.append(Fitted(points, law.fit.slope, law.fit.intercept))
    title = f"{found[0].metric} over {found[0].size}"
    caption = "Geometric mean over seeds, bars ± one sample standard deviation of logarithms; lines are the fits."
    return drawing("scaling", title, scaling(fitted, found[0].size, found[0].metric), caption)
