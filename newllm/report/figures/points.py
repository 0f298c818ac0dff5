"""Points with intervals: quality against cache bytes, one plot per swept axis, bars of the reversal measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from newllm.report.figures.series import Series
from newllm.report.figures.style import (
    MUTED,
    Marks,
    band,
    canvas,
    error_bars,
    few_ticks,
    mark_value,
    plain_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pareto(series: Sequence[Series], x: str, y: str) -> "Figure":
    """One point per group: cost on a logarithmic x, quality on y (less is better in both), with the Pareto front."""
    figure, (axes,) = canvas(height=3.8)
    marks = Marks()
    cost = np.array([one.x[0] for one in series])
    mean = np.array([one.mean[0] for one in series])
    for one in series:
        error_bars(axes, marks, one.index, one.x, one.mean, one.low, one.high)
    on = front(cost, mean)
    (line,) = axes.plot(cost[on], mean[on], color=MUTED, linewidth=1, linestyle=(0, (3, 2)), zorder=1,
                        drawstyle="steps-post")  # fmt: skip
    line.set_gid("front")
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set(xlabel=x, ylabel=y)
    marks.legend(figure, [(one.index, one.label) for one in series], line=False, mark=True)
    return figure


def front(cost: np.ndarray, loss: np.ndarray) -> list[int]:
    """Indices of the points that no other undercuts in one without exceeding it in the other, by rising cost."""
    found: list[int] = []
    for i in np.lexsort((loss, cost)):
        if np.isfinite(loss[i]) and (not found or loss[i] < loss[found[-1]]):
            found.append(int(i))
    return found


@dataclass(frozen=True)
class Sweep:
    """An axis, its values, and for each rest of the configuration the metric at these values."""

    axis: str
    values: Sequence[float | str]
    series: Sequence[Series]  # over words each has one point, whose x is an index into `values`


def sweep(data: Sweep, y: str) -> "Figure":
    """The metric over one swept axis: a line over numbers (logarithmic if they span a decade), points over words."""
    figure, (axes,) = canvas(height=3.6)
    marks = Marks()
    numeric = all(isinstance(value, int | float) for value in data.values)
    for one in data.series:
        if numeric:
            band(axes, marks, one.index, one.x, one.mean, one.low, one.high, dots=True)
        else:
            neighbours = [other for other in data.series if other.x[0] == one.x[0]]
            place = next(i for i, other in enumerate(neighbours) if other is one)
            error_bars(axes, marks, one.index, one.x + _aside(place, len(neighbours)), one.mean, one.low, one.high)
    if numeric:
        _number_axis(axes, [float(value) for value in data.values])
    else:
        axes.set_xticks(range(len(data.values)), [str(value) for value in data.values])
        axes.set_xlim(-0.5, len(data.values) - 0.5)
        axes.grid(axis="x", visible=False)
    axes.set(xlabel=data.axis, ylabel=y)
    marks.legend(figure, [(one.index, one.label) for one in data.series], line=numeric, mark=True)
    return figure


def _number_axis(axes: "Axes", values: list[float]) -> None:
    even = len(values) > 2 and np.ptp(np.diff(values)) < 1e-6 * abs(values[-1])
    if min(values) > 0 and max(values) / min(values) >= 2 and not even:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    few_ticks(axes.xaxis, values)


def _aside(place: int, of: int) -> float:
    """Neighbouring points beside each other, within 0.3 of their tick."""
    return 0.0 if of < 2 else 0.6 * (place / (of - 1) - 0.5)


def bars(panels: dict[str, Sequence[Series]], names: Sequence[str], chance: dict[str, float]) -> "Figure":
    """For each panel the groups' values at each name, as points with intervals; `chance` draws a line for a panel."""
    figure, axes = canvas(columns=len(panels), width=4.2 + 2.2 * len(panels))
    marks = Marks()
    labels: dict[int, str] = {}
    for panel, (title, drawn) in zip(axes, panels.items(), strict=True):
        for place, one in enumerate(drawn):
            labels[one.index] = one.label
            error_bars(panel, marks, one.index, one.x + _aside(place, len(drawn)), one.mean, one.low, one.high)
        if title in chance:
            mark_value(panel, y=chance[title])
        panel.set_xticks(range(len(names)), list(names))
        panel.set_xlim(-0.5, len(names) - 0.5)
        panel.grid(axis="x", visible=False)
        panel.set_title(title)
    marks.legend(figure, sorted(labels.items()), line=False, mark=True)
    return figure
