"""The scaling law: perplexity over a size on logarithmic axes, with the fitted law."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from newllm.report.figures.series import Series
from newllm.report.figures.style import Marks, canvas, colour, dash, error_bars, plain_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Fitted:
    """Points of one group and the curve y = floor + exp(intercept) x^slope fitted to them."""

    points: Series
    slope: float
    intercept: float
    floor: float = 0.0


def scaling(laws: Sequence[Fitted], x: str, y: str) -> "Figure":
    figure, (axes,) = canvas(height=3.8)
    marks = Marks()
    for law in laws:
        points = law.points
        error_bars(axes, marks, points.index, points.x, points.mean, points.low, points.high)
        ends = np.geomspace(points.x.min() * 0.9, points.x.max() * 1.1, 40)
        fitted = law.floor + np.exp(law.intercept) * ends**law.slope
        (line,) = axes.plot(ends, fitted, color=colour(points.index), linestyle=dash(points.index), linewidth=1.3)
        marks.group(points.index, line)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        plain_ticks(axis)
    axes.set(xlabel=x, ylabel=y)
    marks.legend(figure, [(law.points.index, law.points.label) for law in laws], mark=True)
    return figure
