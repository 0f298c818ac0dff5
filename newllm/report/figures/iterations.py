"""A first phase by iteration: loss with its bound, and the share of converged contexts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from newllm.report.figures.series import Series
from newllm.report.figures.style import Marks, band, canvas, colour, thousands

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Course:
    """One group. bound: of the loss, None where none is known; published: (iteration, loss, converged)."""

    loss: Series
    converged: Series
    bound: float | None
    published: Sequence[tuple[float, float, float]]


def iterations(courses: Sequence[Course]) -> "Figure":
    figure, panels = canvas(columns=2)
    marks = Marks()
    for course in courses:
        for column, (axes, series) in enumerate(zip(panels, (course.loss, course.converged), strict=True), 1):
            band(axes, marks, series.index, series.x, series.mean, series.low, series.high, len(series.x) < 15)
            if course.published:
                x, y = [one[0] for one in course.published], [one[column] for one in course.published]
                (crosses,) = axes.plot(x, y, color=colour(series.index), linestyle="", marker="x", markersize=5)
                marks.group(series.index, crosses)
        if course.bound is not None:
            line = panels[0].axhline(course.bound, color=colour(course.loss.index), linewidth=1, linestyle=(0, (3, 2)))
            marks.group(course.loss.index, line)
    for axes, title in zip(panels, ("Loss", "Converged"), strict=True):
        axes.set(title=title, xlabel="iteration")
        thousands(axes.xaxis, whole=True)
    panels[1].set_ylim(-0.03, 1.03)
    marks.legend(figure, [(one.loss.index, one.loss.label) for one in courses])
    return figure
