"""Scaling laws: the fits as a table and on logarithmic axes, and the power law with a floor."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from newllm.analysis.scaling_laws import Fit, Law, Saturation, laws, saturating
from newllm.report.figures import Drawing, Panel, Series, plot
from newllm.report.study import COLOUR_CYCLE, Section, Study
from newllm.report.tables import ABSENT, Cell, Table, make_row, number_cell, text_cell

ALPHA = "\u03b1"


def scaling_laws(study: Study) -> Section:
    """A law for each set of runs that has three sizes."""
    curves = laws(study.frame, study.options.size, study.options.main_metric, study.options.confidence)
    if not curves:
        return Section("scaling", "Scaling law")
    tables, floors = [_power_laws(curves)], None
    if study.options.law == "saturating":
        floors = [saturating(*zip(*law.runs, strict=True)) for law in curves]
        tables.append(_laws_with_floor(curves, floors))
    drawings = [_drawing(curves[: study.options.curves], floors)] if study.figures else []
    return Section("scaling", "Scaling law", (), tables, drawings)


def exponent_cells(fit: Fit) -> dict[str, Cell]:
    """The exponent of a law and its interval."""
    interval, kind = (f"[{fit.low:.4f}, {fit.high:.4f}]", "") if np.isfinite(fit.low) else (ABSENT, "muted")
    return {
        ALPHA: number_cell(fit.slope, "alpha", f"{fit.slope:.4f}"),
        f"{fit.confidence:.0%} interval": Cell(interval, None, {"low": fit.low, "high": fit.high}, kind=kind),
    }


def _power_laws(curves: Sequence[Law]) -> Table:
    rows = [
        make_row({
            "runs": law.label,
            **exponent_cells(law.fit),
            "R²": number_cell(law.fit.r2, "r2", f"{law.fit.r2:.4f}"),
            "A": number_cell(law.fit.factor, "factor", f"{law.fit.factor:.4g}"),
            "sizes": len(law.points),
            "n": law.fit.n,
            "p of misfit": number_cell(law.misfit, "misfit", f"{law.misfit:.2g}"),
            "note": text_cell(law.note, "note", kind="long"),
        })
        for law in curves
    ]  # fmt: skip
    notes = [f"Ordinary least squares of ln {curves[0].metric} on ln {curves[0].size} over all runs of a curve."]
    if any(np.isfinite(law.misfit) for law in curves):
        notes.append(
            "p of misfit: the F-test of a line through the sizes' means, by the scatter of their runs. Where it is "
            f"small, these sizes follow no power law: {ALPHA} and its interval only say how steep the points are "
            "overall. The scatter over seeds does not tell what other training texts would give."
        )
    hints = {
        ALPHA: "slope of ln y on ln x",
        "A": f"y = A x^{ALPHA}",
        "n": "runs fitted",
        "p of misfit": "below 0.05 the means do not lie on a line",
    }
    return Table("scaling", f"{curves[0].metric} = A · ({curves[0].size})^{ALPHA}", rows, notes, hints)


def _laws_with_floor(curves: Sequence[Law], floors: Sequence[Saturation]) -> Table:
    rows = []
    for law, fit in zip(curves, floors, strict=True):
        preferred = ("with a floor" if fit.preferred else "power law") if np.isfinite(fit.aic) else ""
        rows.append(make_row({
            "runs": law.label,
            "floor": number_cell(fit.floor, "floor", f"{fit.floor:.4g}" if fit.floor > 1e-3 else "0"),
            "a": number_cell(fit.slope, "slope", f"{fit.slope:.4f}"),
            "A": number_cell(fit.factor, "factor", f"{fit.factor:.4g}"),
            "R²": number_cell(fit.r2, "r2", f"{fit.r2:.5f}"),
            "AIC": number_cell(fit.aic, "aic", f"{fit.aic:.2f}"),
            "AIC of the power law": number_cell(fit.aic_power, "aic power", f"{fit.aic_power:.2f}"),
            "preferred": preferred,
        }))  # fmt: skip
    notes = [
        f"Least squares of {curves[0].metric} itself over all runs of a curve, for both laws; the lower AIC is "
        "preferred. A curve of fewer than four sizes has no such fit.",
    ]
    hints = {"floor": "y at infinite size", "a": "exponent, below 0"}
    return Table("scaling-floor", f"{curves[0].metric} = floor + A · ({curves[0].size})^a", rows, notes, hints)


def _drawing(curves: Sequence[Law], floors: Sequence[Saturation] | None) -> Drawing:
    """Points and fits of each law; the curve with a floor where that is preferred."""
    series, fits = [], {}
    for place, law in enumerate(curves):
        index, size, metric = 99 * COLOUR_CYCLE + place, law.size, law.metric
        runs = pd.DataFrame(law.runs, columns=["size", "value"]).groupby("size")["value"]
        rows = pd.DataFrame({size: pd.Series(values.to_numpy()) for size, values in runs})
        series.append(Series.over_seeds(index, law.label, rows, log=True))
        x = np.geomspace(min(rows) * 0.9, max(rows) * 1.1, 40)
        fits[index] = (x, law.fit.factor * x**law.fit.slope)
        if floors is not None and floors[place].preferred:
            fits[index] = (x, floors[place].floor + floors[place].factor * x ** floors[place].slope)
    panel = Panel(series, size, metric, log_x=True, log_y=True, points=True, fits=fits)
    caption = "Geometric mean over seeds, bars ± one sample standard deviation of logarithms; lines are the fits."
    return Drawing.of("scaling", f"{metric} over {size}", plot([panel], height=3.8), caption)
