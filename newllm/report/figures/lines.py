"""Lines with bands: learning curves, perplexity by position, by length, values per layer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from newllm.report.figures.series import Series
from newllm.report.figures.style import Marks, band, canvas, few_ticks, mark_value, plain_ticks, thousands

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lines(
    panels: Mapping[str, Sequence[Series]],
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    dots: bool = False,
    whole_x: bool = False,
    marked_x: float | None = None,
    marked_y: Mapping[str, float] | None = None,
) -> "Figure":
    """A panel for each title, all with one legend; bands where there is more than one seed; `whole_x` for layers.

    Dashed lines stand at `marked_x` in all panels, and at `marked_y` in the panels that it names.
    """
    figure, axes = canvas(columns=len(panels))
    marks = Marks()
    labels: dict[int, str] = {}
    for i, (panel, (title, drawn)) in enumerate(zip(axes, panels.items(), strict=True)):
        for series in drawn:
            labels[series.index] = series.label
            band(panel, marks, series.index, series.x, series.mean, series.low, series.high, dots or len(series.x) < 8)
        panel.set(title=title, xlabel=x, ylabel=y if i == 0 else "")
        if log_x:
            panel.set_xscale("log")
            plain_ticks(panel.xaxis)
            few_ticks(panel.xaxis, [x for series in drawn for x in series.x])
        else:
            thousands(panel.xaxis, whole_x)
        if log_y:
            panel.set_yscale("log")
            plain_ticks(panel.yaxis)
        mark_value(panel, marked_x, (marked_y or {}).get(title))
    marks.legend(figure, sorted(labels.items()), mark=dots)
    return figure
