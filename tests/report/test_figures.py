"""Figures: everything that is drawn can be seen."""

import numpy as np
import pytest

from newllm.report.figures import Drawing, Panel, Series, plot, styled


@pytest.mark.parametrize("groups", [2, 14])
def test_the_legend_is_whole(groups: int) -> None:
    x = np.arange(3.0)
    drawn = [
        Series(i, f"samples {i} · context_dim 256 · layers 6 · num_input_tokens 1", x, x + i, x * np.nan, x * np.nan)
        for i in range(groups)
    ]
    with styled():
        figure = plot([Panel(drawn, "step", "perplexity", title) for title in ("Training", "Validation")])
        figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figure.bbox.y1
    assert len(figure.legends[0].get_texts()) == groups


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.filterwarnings("error")
def test_values_that_no_axis_can_hold_are_left_out(log: bool) -> None:
    series = [Series.over_seeds(0, "diverged", {0.0: [2.0, 3.0], 1.0: [1e260, 3.0], 2.0: [1e308, 1e308]}, log)]
    assert series[0].x.tolist() == [0.0, 1.0]
    with styled():
        Drawing.of("huge", "", plot([Panel(series, log_x=True, log_y=log)]))
