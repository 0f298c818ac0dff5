"""Spectra beside results: the wavelength of each rotary channel, and what the same groups reach at each length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from newllm.report.figures.series import Series
from newllm.report.figures.style import (
    Marks,
    band,
    canvas,
    colour,
    dash,
    few_ticks,
    mark_value,
    plain_ticks,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spectra(wavelengths: Sequence[Series], results: Sequence[Series], trained: float | None, title: str) -> "Figure":
    """Left: wavelength over channel, with the training length; right: perplexity over the length of the context."""
    figure, (left, right) = canvas(columns=2, height=3.8)
    marks = Marks()
    for one in wavelengths:
        (line,) = left.plot(one.x, one.mean, color=colour(one.index), linestyle=dash(one.index), linewidth=1.6)
        marks.group(one.index, line)
    left.set_yscale("log")
    plain_ticks(left.yaxis)
    left.set(title="Wavelength", xlabel="rotary channel (pair of dims)", ylabel="tokens")
    for one in results:
        band(right, marks, one.index, one.x, one.mean, one.low, one.high, dots=True)
    right.set(xscale="log", yscale="log", title=title, xlabel="tokens of context", ylabel="perplexity")
    plain_ticks(right.yaxis)
    plain_ticks(right.xaxis)
    few_ticks(right.xaxis, [x for one in results for x in one.x])
    mark_value(left, y=trained)
    mark_value(right, x=trained)
    labels = {one.index: one.label for one in (*wavelengths, *results)}
    marks.legend(figure, sorted(labels.items()), mark=True)
    return figure
