"""Figures by matplotlib: how all of them look, and what they are made of.

Colour-blind readers can tell the colours apart. Ink, grid and group colours are fixed hexadecimal values, because the
page replaces them by CSS variables to follow the reader's light or dark setting.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

INK, MUTED, GRID = "#1d2023", "#6a7076", "#e3e5e8"
# After Okabe & Ito (2008), without their green, so that no two colours differ by red against green alone.
COLOURS = ("#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#8a4fa3", "#cc79a7", "#4a5568", "#a6761d")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
DASHED = (0, (3, 2))
MARKERS = "osD^vPX"
HEAT = ("#a6611a", "#f3f1ec", "#0b5394")  # 0, chance, 1
ON_PALE, ON_DARK = "#14171a", "#fcfcfb"  # numbers in cells; not among the colours that the page replaces
PNG_DPI = 160
MOST_MARKS = 15  # lines with more points have no marks
MOST_TICKS = 8  # that stand at the values themselves
TOO_LARGE = 1e100  # the perplexity of a model that diverged; matplotlib's ticks overflow far beyond

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "newllm",
    "font.family": ["DejaVu Sans"], "font.size": 9.5, "text.color": INK,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.linewidth": 0.8,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.7,
    "xtick.color": MUTED, "xtick.labelcolor": INK, "xtick.major.size": 3,
    "ytick.color": MUTED, "ytick.labelcolor": INK, "ytick.major.size": 3,
    "lines.linewidth": 1.8, "legend.frameon": False, "legend.fontsize": 9,
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One group in one panel: means over seeds at each x. low and high are NaN where there is one seed.

    index: of the group's colour, dash and mark, the same in all figures.
    """

    index: int
    label: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def over_seeds(cls, index: int, label: str, values: Any, log: bool = False) -> "Series":
        """Mean ± sample standard deviation over the rows of `values`; `log` averages logarithms (geometric mean).

        values: a table with a row per seed and a column per x, as pandas.DataFrame understands it. Values that are
        missing, infinite or too large for an axis are left out; an x that no seed has is dropped.
        """
        table = pd.DataFrame(values).astype(float)
        table = table.where(table.abs() < TOO_LARGE)
        if log:
            with np.errstate(divide="ignore", invalid="ignore"):
                table = np.log(table)
        table = table.replace([np.inf, -np.inf], np.nan).dropna(axis=1, how="all").sort_index(axis=1)
        mean, std = table.mean(), table.std()
        curves = (curve.to_numpy() for curve in (mean, mean - std, mean + std))
        return cls(index, label, table.columns.to_numpy(dtype=float), *(map(np.exp, curves) if log else curves))


@dataclass(frozen=True)
class Panel:
    """One set of axes with a line for each series, and the band from low to high around it.

    points: draw points with intervals instead, side by side where several series have the same x. fits: index of a
    series -> x and y of the line through its points. words: stand at x = 0, 1, … in place of the numbers. mark_x,
    mark_y: a value that all groups share, such as the training length, drawn as a dashed line.
    """

    series: Sequence[Series]
    x: str = ""
    y: str = ""
    title: str = ""
    log_x: bool = False
    log_y: bool = False
    points: bool = False
    fits: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    words: Sequence[str] = ()
    mark_x: float | None = None
    mark_y: float | None = None


def plot(panels: Sequence[Panel], width: float = 8.4, height: float = 3.5) -> Figure:
    """A figure of panels side by side, with one legend for all of them. Sizes are in inches."""
    figure, all_axes = empty_figure(len(panels), width=width, height=height)
    for place, (axes, panel) in enumerate(zip(all_axes, panels, strict=True)):
        for series in panel.series:
            if panel.points:
                _draw_points(axes, series, panel)
            else:
                _draw_line(axes, series)
        for index, (x, y) in panel.fits.items():
            curve(axes, index, x, y, linewidth=1.3)
        repeated = place > 0 and panel.y == panels[place - 1].y
        axes.set(title=panel.title, xlabel=panel.x, ylabel="" if repeated else panel.y)
        if panel.words:
            axes.set_xticks(range(len(panel.words)), list(panel.words))
            axes.set_xlim(-0.5, len(panel.words) - 0.5)
            axes.grid(axis="x", visible=False)
        else:
            places = [x for series in panel.series for x in series.x]
            _scale(axes.xaxis, panel.log_x and min(places, default=0) > 0, places)
        if panel.log_y:
            _scale(axes.yaxis, log=True)
        mark_value(axes, panel.mark_x, panel.mark_y)
    labels = {series.index: series.label for panel in panels for series in panel.series}
    lines = any(panel.fits or not panel.points for panel in panels)
    marks = any(panel.points or len(series.x) <= MOST_MARKS for panel in panels for series in panel.series)
    _legend(figure, dict(sorted(labels.items())), lines, marks)
    return figure


def heat_maps(maps: Mapping[tuple[int, str], pd.DataFrame], chance: float, x: str, y: str) -> Figure:
    """A map of shares for each (index, label): rows are shares too, columns are numbers.

    The colours diverge at chance: pale is chance, blue above, brown below. Each cell shows its share in percent.
    """
    # An odd number of colours, so that chance has one of its own.
    colours, norm = LinearSegmentedColormap.from_list("chance", HEAT, 21), TwoSlopeNorm(chance, 0, 1)
    scale = ScalarMappable(norm, colours)
    columns, rows = min(3, len(maps)), ceil(len(maps) / 3)
    tallest = max(len(table) for table in maps.values())
    figure, all_axes = empty_figure(columns, rows, height=rows * (0.75 + 0.3 * tallest) + 0.3)
    for place, (axes, ((index, label), table)) in enumerate(zip(all_axes, maps.items(), strict=False)):
        shares = np.ma.masked_invalid(table.to_numpy(dtype=float))
        of_group(index, axes.pcolormesh(shares, norm=norm, cmap=colours, edgecolor=HEAT[1], linewidth=0.8))
        for row, column in zip(*np.nonzero(~shares.mask), strict=True):
            share = shares[row, column]
            pale = np.dot(scale.to_rgba(share)[:3], (0.299, 0.587, 0.114)) > 0.55
            ink, text = ON_PALE if pale else ON_DARK, f"{100 * share:.0f}"
            of_group(index, axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8.5, color=ink))
        axes.set_xticks(np.arange(len(table.columns)) + 0.5, [short(number) for number in table.columns])
        axes.set_yticks(np.arange(len(table)) + 0.5, [f"{100 * share:.0f} %" for share in table.index])
        axes.invert_yaxis()
        axes.set_title(_wrapped(label), fontsize=9)
        axes.set(xlabel=x if place + columns >= len(maps) else "", ylabel=y if place % columns == 0 else "")
        axes.grid(visible=False)
    for axes in all_axes[len(maps) :]:
        axes.set_visible(False)
    bar = figure.colorbar(scale, ax=all_axes, shrink=0.8, pad=0.02, ticks=[0, chance, 1])
    bar.ax.set_yticklabels(["0 %", f"{100 * chance:.0f} %\nchance", "100 %"])
    bar.outline.set_visible(False)
    return figure


@dataclass(frozen=True)
class Drawing:
    """A finished figure. `name` is the stem of its files; `file` holds the SVG document; the caption stands below."""

    name: str
    title: str
    figure: Figure
    file: bytes
    caption: str = ""

    @classmethod
    def of(cls, name: str, title: str, figure: Figure, caption: str = "") -> "Drawing":
        """Call this within `styled()`, in which the figure was drawn."""
        for number, artist in enumerate(figure.findobj(lambda one: bool(one.get_gid()))):
            artist.set_gid(f"{artist.get_gid()}-{number}")  # an id may occur only once in a document
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # the layout is done; the PNG need not repeat it
        return cls(name, title, figure, svg.getvalue(), caption)

    def png(self) -> bytes:
        image = io.BytesIO()
        with styled():
            self.figure.savefig(image, format="png", dpi=PNG_DPI)
        return image.getvalue()

    @property
    def svg(self) -> str:
        """The <svg> element as a part of the page.

        Ids become ``name-id``, since those of several figures would clash, but ids of groups and legend entries become
        classes (``group-3``, ``key-3``) that all figures share. Colours become CSS variables.
        """
        element = self.file.decode()
        element = element[element.index("<svg") :]
        element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
        element = re.sub(r'<g id="patch_1">.*?</g>', "", element, count=1, flags=re.DOTALL)  # the background
        element = re.sub(r'id="(group|key)-(\d+)-\d+"', r'class="\1 \1-\2"', element)
        element = re.sub(r'id="([^"]+)"', rf'id="{self.name}-\1"', element)
        element = re.sub(r'(url\(|href=")#', rf"\1#{self.name}-", element)
        for size in ("height", "width"):
            element = re.sub(rf'(<svg\b[^>]*?) {size}="[^"]*"', r"\1", element, count=1)
        variables = {INK: "--ink", MUTED: "--muted", GRID: "--line", **{c: f"--c{i}" for i, c in enumerate(COLOURS)}}
        for colour_in_file, variable in variables.items():
            element = element.replace(f": {colour_in_file}", f": var({variable}, {colour_in_file})")
        element = element.replace("fill: #ffffff", "fill: none")
        return re.sub(r"\n\s*", "\n", element.replace("'DejaVu Sans'", "var(--sans)"))


@contextmanager
def styled() -> Iterator[None]:
    """Within it, matplotlib uses our fonts, lines and colours."""
    with matplotlib.rc_context(_RC):
        yield


def empty_figure(columns: int = 1, rows: int = 1, width: float = 8.4, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """A figure with rows and columns of axes; sizes are in inches."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def of_group(index: int, *artists: Any) -> None:
    """Mark what is drawn for a group, so that the page can hide it."""
    for artist in artists:
        artist.set_gid(f"group-{index}")


def curve(axes: Axes, index: int, x: Any, y: Any, **look: Any) -> None:
    """A line in the group's colour and dash."""
    of_group(index, *axes.plot(x, y, **{"color": colour(index), "linestyle": _dash(index), **look}))


def mark_value(axes: Axes, x: float | None = None, y: float | None = None) -> None:
    """A thin dashed line at a value that all groups share."""
    for draw, value in ((axes.axvline, x), (axes.axhline, y)):
        if value is not None:
            draw(value, color=MUTED, linewidth=1, linestyle=DASHED, zorder=1)


def short(value: float) -> str:
    """15000 as 15k, 2000000 as 2M; numbers below ten thousand in full."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _draw_line(axes: Axes, series: Series) -> None:
    marker = _marker(series.index) if len(series.x) <= MOST_MARKS else None
    curve(axes, series.index, series.x, series.mean, marker=marker, markersize=4.5)
    if np.isfinite(series.low).any():
        band = axes.fill_between(series.x, series.low, series.high, color=colour(series.index), alpha=0.16, linewidth=0)
        of_group(series.index, band)


def _draw_points(axes: Axes, series: Series, panel: Panel) -> None:
    x = series.x.copy()
    for place, value in enumerate(series.x if panel.words else ()):  # neighbours stand within 0.3 of their word
        neighbours = [other.index for other in panel.series if value in other.x]
        if len(neighbours) > 1:
            x[place] += 0.6 * (neighbours.index(series.index) / (len(neighbours) - 1) - 0.5)
    arms = np.nan_to_num(np.stack([series.mean - series.low, series.high - series.mean])).clip(min=0)
    look: dict[str, Any] = {"color": colour(series.index), "marker": _marker(series.index), "markersize": 5}
    line, caps, bars = axes.errorbar(x, series.mean, arms, linestyle="", capsize=2.5, elinewidth=1.2, **look).lines
    of_group(series.index, line, *caps, *bars)


def _dash(index: int) -> Any:
    return DASHES[index // len(COLOURS) % len(DASHES)]


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def _legend(figure: Figure, labels: Mapping[int, str], lines: bool, marks: bool) -> None:
    """One legend for all panels, at their right. A legend with many entries makes the figure higher."""
    handles = [
        Line2D([], [], color=colour(index), linestyle=_dash(index) if lines else "",
               marker=_marker(index) if marks else None, markersize=5)
        for index in labels
    ]  # fmt: skip
    texts = [_wrapped(label) for label in labels.values()]
    legend = figure.legend(handles, texts, loc="outside right upper", handlelength=2.2)
    height = legend.get_window_extent().height / figure.dpi + 0.2  # inches, with the margins
    figure.set_figheight(max(figure.get_figheight(), height))
    for index, *artists in zip(labels, legend.legend_handles, legend.get_texts(), strict=True):
        for artist in artists:
            artist.set_gid(f"key-{index}")  # type: ignore[union-attr]


def _scale(axis: Any, log: bool, values: Sequence[float] = ()) -> None:
    """A linear or logarithmic axis whose numbers read as 120, 15k, 5M.

    Ticks stand at `values` themselves where these are few and far enough apart.
    """
    if log:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        low, high = sorted(abs(bound) for bound in axis.get_view_interval())
        ratio = high / low if low else 1e9
        if ratio < 5:  # too short for powers of ten and their parts
            axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
            axis.set_minor_locator(LogLocator(subs=()))
        else:
            parts = (1, 2, 3, 5) if ratio < 30 else (1, 3) if ratio < 300 else (1,)
            axis.set_major_locator(LogLocator(subs=parts, numticks=12))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(6, integer=all(float(value).is_integer() for value in values)))
    axis.set_major_formatter(lambda value, _: short(value))
    distinct = np.unique(values)
    places = np.log(distinct) if log else distinct
    if 0 < len(distinct) <= MOST_TICKS and (np.diff(places) > 0.05 * np.ptp(places)).all():
        axis.set_ticks(distinct, [short(value) for value in distinct])
        axis.set_minor_locator(NullLocator())


def _wrapped(label: str, width: int = 26) -> str:
    """A long label on several lines, broken between its parts."""
    lines = [""]
    for part in label.split(" · ") if len(label) > width else [label]:
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        if lines[-1] and len(joined) > width:
            lines.append(part)
        else:
            lines[-1] = joined
    return "\n".join(lines)
