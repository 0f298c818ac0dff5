"""Heat maps: a share at each depth and length, one map per group, the same colours in both themes and in print.

The scale diverges at chance: pale is chance, blue is above, brown below. Each cell also says its number, in an ink that
stands out from the cell and not from the page, so that it can be read in grey and on a dark page as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from newllm.report.figures.style import Marks, canvas, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BELOW, PALE, ABOVE = "#a6611a", "#f3f1ec", "#0b5394"
DARK, LIGHT = "#14171a", "#fcfcfb"  # of numbers in cells; no colour of the page, which a theme would change
STEPS = 21  # of colour; an odd number, so that chance has one of its own
COLUMNS = 3  # maps side by side


@dataclass(frozen=True)
class Heat:
    """One map. values: shares [depths, lengths], NaN where nothing was measured."""

    index: int
    label: str
    lengths: Sequence[float]
    depths: Sequence[float]
    values: np.ndarray


def heat(maps: Sequence[Heat], x: str, y: str, chance: float) -> "Figure":
    """The maps in rows of three, with one scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm

    columns = min(COLUMNS, len(maps))
    rows = ceil(len(maps) / columns)
    deepest = max(len(one.depths) for one in maps)
    figure, axes = canvas(columns, rows=rows, height=rows * (0.75 + 0.3 * deepest) + 0.3)
    colours = ScalarMappable(
        TwoSlopeNorm(chance, 0, 1), LinearSegmentedColormap.from_list("chance", (BELOW, PALE, ABOVE), STEPS)
    )
    marks = Marks()
    for place, (panel, one) in enumerate(zip(axes, maps, strict=False)):
        _map(panel, marks, one, colours)
        panel.set_title(_lines(one.label), fontsize=9)
        panel.set(xlabel=x if place + columns >= len(maps) else "", ylabel=y if place % columns == 0 else "")
    for panel in axes[len(maps) :]:
        panel.set_visible(False)
    scale = figure.colorbar(colours, ax=axes, shrink=0.8, pad=0.02, ticks=[0, chance, 1])
    scale.ax.set_yticklabels(["0 %", f"{100 * chance:.0f} %\nchance", "100 %"])
    scale.outline.set_visible(False)
    return figure


def _map(panel: "Axes", marks: Marks, one: Heat, colours: Any) -> None:
    from matplotlib.patches import Rectangle

    for row, column in np.ndindex(*one.values.shape):
        value = one.values[row, column]
        if not np.isfinite(value):
            continue
        colour = colours.to_rgba(value)
        panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor=PALE, linewidth=0.8))
        ink = DARK if np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.55 else LIGHT
        said = panel.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8.5, color=ink)
        marks.group(one.index, panel.patches[-1], said)
    panel.set_xticks(range(len(one.lengths)), [short(length) for length in one.lengths])
    panel.set_yticks(range(len(one.depths)), [f"{100 * depth:.0f} %" for depth in one.depths])
    panel.set(xlim=(-0.5, len(one.lengths) - 0.5), ylim=(len(one.depths) - 0.5, -0.5))
    panel.grid(visible=False)


def _lines(label: str) -> str:
    """A label on two lines where it is long."""
    parts = label.split(" · ")
    middle = (len(parts) + 1) // 2 if len(label) > 26 else len(parts)
    return "\n".join(" · ".join(half) for half in (parts[:middle], parts[middle:]) if half)
