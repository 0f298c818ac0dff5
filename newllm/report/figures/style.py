"""How all figures look: colours that colour-blind readers can tell apart, marks beside colours, quiet axes.

Ink, grid and group colours are fixed hexadecimal values, since the page replaces them by variables of its own
(`newllm.report.inline`) to follow the reader's light or dark setting.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2023", "#6a7076", "#e3e5e8"
# After Okabe & Ito (2008), without their green, so that no two colours are told apart by red against green alone.
COLOURS = ("#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#8a4fa3", "#cc79a7", "#4a5568", "#a6761d")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = "osD^vPX"

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "newllm",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> Any:
    return DASHES[index // len(COLOURS) % len(DASHES)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib set up for our figures: no window system, our fonts and lines."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def canvas(
    columns: int = 1, width: float = 8.4, height: float = 3.5, rows: int = 1, **options: Any
) -> "tuple[Figure, list[Axes]]":
    """A figure with `columns` panels side by side, in `rows` rows; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(panels.flat)


class Marks:
    """Names the artists of each group, so that the page finds them: SVG ids group-INDEX-NUMBER and key-INDEX-NUMBER."""

    def __init__(self) -> None:
        self._number = count()

    def group(self, index: int, *artists: Any) -> None:
        for artist in artists:
            artist.set_gid(f"group-{index}-{next(self._number)}")

    def legend(
        self, figure: "Figure", labels: Sequence[tuple[int, str]], line: bool = True, mark: bool = False
    ) -> None:
        """One legend for all panels, right of them; a label stands for the group of its index.

        Where it has more lines than there is room for, the figure becomes higher.
        """
        from matplotlib.lines import Line2D

        handles = [
            Line2D(
                [],
                [],
                color=colour(i),
                linestyle=dash(i) if line else "",
                marker=marker(i) if mark else None,
                markersize=5,
            )
            for i, _ in labels
        ]
        texts = [_broken(label) for _, label in labels]
        legend = figure.legend(handles, texts, loc="outside right upper", handlelength=2.2)
        height = legend.get_window_extent().height / figure.dpi + 0.2  # inches, with what the layout leaves around it
        figure.set_figheight(max(figure.get_figheight(), height))
        for (index, _), handle, text in zip(labels, legend.legend_handles, legend.get_texts(), strict=True):
            for artist in (handle, text):
                if artist is not None:
                    artist.set_gid(f"key-{index}-{next(self._number)}")


def error_bars(axes: "Axes", marks: Marks, index: int, x: Any, y: Any, low: Any, high: Any, **options: Any) -> None:
    """Points with intervals [low, high] (arrays; NaN where there is none), in the group's colour and mark."""
    import numpy as np

    y, low, high = (np.asarray(values, dtype=float) for values in (y, low, high))
    arms = np.nan_to_num(np.stack([y - low, high - y])).clip(min=0)
    drawn = axes.errorbar(
        x, y, yerr=arms, color=colour(index), marker=marker(index), markersize=5, linestyle="", capsize=2.5,
        elinewidth=1.2, **options,
    )  # fmt: skip
    line, caps, bars = drawn.lines
    marks.group(index, line, *caps, *bars)


def band(axes: "Axes", marks: Marks, index: int, x: Any, y: Any, low: Any, high: Any, dots: bool = False) -> None:
    """A line with the band [low, high] around it; `dots` marks its points as well."""
    import numpy as np

    style: dict[str, Any] = {"marker": marker(index), "markersize": 4.5} if dots else {}
    (line,) = axes.plot(x, y, color=colour(index), linestyle=dash(index), **style)
    marks.group(index, line)
    if np.isfinite(np.asarray(low, dtype=float)).any():
        filled = axes.fill_between(x, low, high, color=colour(index), alpha=0.16, linewidth=0)
        marks.group(index, filled)


def mark_value(axes: "Axes", x: float | None = None, y: float | None = None) -> None:
    """A thin dashed line at a value that all groups share: the training length, chance."""
    style: dict[str, Any] = {"color": MUTED, "linewidth": 1, "linestyle": (0, (3, 2)), "zorder": 1}
    if x is not None:
        axes.axvline(x, **style)
    if y is not None:
        axes.axhline(y, **style)


def plain_ticks(axis: Any) -> None:
    """Numbers as one says them on a logarithmic axis: 120, 1k, 5M; a few labels between the decades if they fit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(abs(bound) for bound in axis.get_view_interval())
    decades = high / low if low else 1e9
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 3, 5) if decades < 30 else (1, 3) if decades < 300 else (1,), numticks=12)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())
    if decades < 5:  # too short a stretch for powers and their parts: ordinary steps
        from matplotlib.ticker import MaxNLocator

        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(LogLocator(subs=()))


def thousands(axis: Any, whole: bool = False) -> None:
    """The same words on an ordinary axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=whole))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def few_ticks(axis: Any, values: Sequence[float]) -> None:
    """Ticks at these very values, where they are not more than eight."""
    from matplotlib.ticker import NullLocator

    distinct = sorted(set(values))
    if len(distinct) <= 8:
        axis.set_ticks(distinct, [short(value) for value in distinct])
        axis.set_minor_locator(NullLocator())


def short(value: float) -> str:
    """15000 as 15k, 2000000 as 2M; below ten thousand as it is."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _broken(label: str, width: int = 26) -> str:
    """A long label on two lines, broken where its parts meet."""
    if len(label) <= width:
        return label
    parts, lines = label.split(" · "), [""]
    for part in parts:
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        if lines[-1] and len(joined) > width:
            lines.append(part)
        else:
            lines[-1] = joined
    return "\n".join(lines)
