"""Figures by matplotlib: how they all look, and what they are put together from.

Colours can be told apart by colour-blind readers. Ink, grid and group colours are fixed hexadecimal values, since the
page replaces them by variables of its own to follow the reader's light or dark setting.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2023", "#6a7076", "#e3e5e8"
# After Okabe & Ito (2008), without their green, so that no two colours are told apart by red against green alone.
COLOURS = ("#0072b2", "#d55e00", "#56b4e9", "#e69f00", "#8a4fa3", "#cc79a7", "#4a5568", "#a6761d")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
DASHED = (0, (3, 2))
MARKERS = "osD^vPX"
HEAT = ("#a6611a", "#f3f1ec", "#0b5394")  # 0, chance, 1
ON_PALE, ON_DARK = "#14171a", "#fcfcfb"  # numbers in cells; no colours of the page, which a theme would change
PNG_DPI = 160

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
    """A group in one panel: means over seeds at each x. low and high are NaN where there is one seed.

    index: of the group's colour, dash and mark, the same in all figures.
    """

    index: int
    label: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Drawing:
    """`name` is the stem of its files; `file` holds the SVG document. The caption stands below it."""

    name: str
    title: str
    figure: "Figure"
    file: bytes
    caption: str = ""

    def png(self) -> bytes:
        held = io.BytesIO()
        with styled():
            self.figure.savefig(held, format="png", dpi=PNG_DPI)
        return held.getvalue()

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
        for printed, variable in variables.items():
            element = element.replace(f": {printed}", f": var({variable}, {printed})")
        element = element.replace("fill: #ffffff", "fill: none")
        return re.sub(r"\n\s*", "\n", element.replace("'DejaVu Sans'", "var(--sans)"))


def drawing(name: str, title: str, figure: "Figure", caption: str = "") -> Drawing:
    """Call this within `styled()`, where the figure was made."""
    for number, artist in enumerate(figure.findobj(lambda one: bool(one.get_gid()))):
        artist.set_gid(f"{artist.get_gid()}-{number}")  # ids of one document are different
    held = io.BytesIO()
    figure.savefig(held, format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # it is laid out now; the PNG need not do it again
    return Drawing(name, title, figure, held.getvalue(), caption)


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib set up for our figures: no window system, our fonts and lines."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def panels(columns: int = 1, rows: int = 1, width: float = 8.4, height: float = 3.5) -> "tuple[Figure, list[Axes]]":
    """A figure of rows and columns of axes; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> Any:
    return DASHES[index // len(COLOURS) % len(DASHES)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def of_group(index: int, *artists: Any) -> None:
    """Mark what is drawn for a group, so that the page can hide it."""
    for artist in artists:
        artist.set_gid(f"group-{index}")


def curve(axes: "Axes", index: int, x: Any, y: Any, **style: Any) -> None:
    """A line in the group's colour and dash."""
    of_group(index, *axes.plot(x, y, **{"color": colour(index), "linestyle": dash(index), **style}))


def band(axes: "Axes", one: Series, dots: bool = False) -> None:
    """A line with the band [low, high] around it; `dots` marks its points as well."""
    curve(axes, one.index, one.x, one.mean, marker=marker(one.index) if dots else None, markersize=4.5)
    if np.isfinite(one.low).any():
        of_group(one.index, axes.fill_between(one.x, one.low, one.high, color=colour(one.index), alpha=0.16, lw=0))


def points(axes: "Axes", one: Series, aside: float = 0.0) -> None:
    """Points with intervals [low, high], moved by `aside`."""
    arms = np.nan_to_num(np.stack([one.mean - one.low, one.high - one.mean])).clip(min=0)
    drawn = axes.errorbar(
        one.x + aside, one.mean, yerr=arms, color=colour(one.index), marker=marker(one.index), markersize=5,
        linestyle="", capsize=2.5, elinewidth=1.2,
    )  # fmt: skip
    line, caps, bars = drawn.lines
    of_group(one.index, line, *caps, *bars)


def aside(place: int, of: int) -> float:
    """Where neighbours at one tick stand, within 0.3 of it."""
    return 0.0 if of < 2 else 0.6 * (place / (of - 1) - 0.5)


def legend(figure: "Figure", labels: Mapping[int, str], line: bool = True, mark: bool = False) -> None:
    """One legend for all panels, right of them, from the index and label of each group.

    The figure becomes higher where the legend has more lines than there is room for.
    """
    from matplotlib.lines import Line2D

    def handle(index: int) -> Line2D:
        shape: dict[str, Any] = {"linestyle": dash(index) if line else "", "marker": marker(index) if mark else None}
        return Line2D([], [], color=colour(index), markersize=5, **shape)

    handles, texts = [handle(index) for index in labels], [_broken(label) for label in labels.values()]
    made = figure.legend(handles, texts, loc="outside right upper", handlelength=2.2)
    height = made.get_window_extent().height / figure.dpi + 0.2  # inches, with the margins
    figure.set_figheight(max(figure.get_figheight(), height))
    for index, shown, text in zip(labels, made.legend_handles, made.get_texts(), strict=True):
        for artist in (shown, text):
            if artist is not None:
                artist.set_gid(f"key-{index}")


def labels_of(*drawn: Sequence[Series]) -> dict[int, str]:
    """Index -> label of all series, in order of the index."""
    return dict(sorted({one.index: one.label for some in drawn for one in some}.items()))


def lines(
    titled: Mapping[str, Sequence[Series]],
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    dots: bool = False,
    whole_x: bool = False,
    marked_x: float | None = None,
    marked_y: Mapping[str, float] | None = None,
) -> "Figure":
    """A panel of lines with bands for each title, all with one legend; `whole_x` for numbers of layers.

    Dashed lines stand at `marked_x` in all panels, and at `marked_y` in the panels that it names.
    """
    figure, axes = panels(len(titled))
    for panel, (title, drawn) in zip(axes, titled.items(), strict=True):
        for one in drawn:
            band(panel, one, dots or len(one.x) < 8)
        panel.set(title=title, xlabel=x, ylabel=y if panel is axes[0] else "")
        if log_x:
            log_axis(panel.xaxis, [value for one in drawn for value in one.x])
        else:
            plain_axis(panel.xaxis, whole_x)
        if log_y:
            log_axis(panel.yaxis)
        mark_value(panel, marked_x, (marked_y or {}).get(title))
    legend(figure, labels_of(*titled.values()), mark=dots)
    return figure


def heat_scale(chance: float) -> Any:
    """Colours of shares from 0 to 1 that diverge at chance: pale is chance, blue is above, brown below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm

    colours = LinearSegmentedColormap.from_list("chance", HEAT, 21)  # an odd number: chance has one of its own
    return ScalarMappable(TwoSlopeNorm(chance, 0, 1), colours)


def heat_map(axes: "Axes", index: int, label: str, shares: Mapping[tuple[float, float], float], scale: Any) -> None:
    """A map of shares by (row, column); each cell says its number in percent, in an ink that stands out from it."""
    from matplotlib.patches import Rectangle

    rows, columns = (sorted({place[side] for place in shares}) for side in (0, 1))
    for (row, column), share in shares.items():
        x, y, cell = columns.index(column), rows.index(row), scale.to_rgba(share)
        patch = axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=cell, edgecolor=HEAT[1], linewidth=0.8))
        ink = ON_PALE if np.dot(cell[:3], (0.299, 0.587, 0.114)) > 0.55 else ON_DARK
        said = axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8.5, color=ink)
        of_group(index, patch, said)
    axes.set_xticks(range(len(columns)), [short(column) for column in columns])
    axes.set_yticks(range(len(rows)), [f"{100 * row:.0f} %" for row in rows])
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_title(_broken(label), fontsize=9)
    axes.grid(visible=False)


def mark_value(axes: "Axes", x: float | None = None, y: float | None = None) -> None:
    """A thin dashed line at a value that all groups share: the training length, chance."""
    for draw, value in ((axes.axvline, x), (axes.axhline, y)):
        if value is not None:
            draw(value, color=MUTED, linewidth=1, linestyle=DASHED, zorder=1)


def log_axis(axis: Any, ticks: Sequence[float] = ()) -> None:
    """A logarithmic axis labelled as one says numbers: 120, 1k, 5M; at these `ticks` if they are no more than eight."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = sorted(abs(bound) for bound in axis.get_view_interval())
    decades = high / low if low else 1e9
    parts = (1, 2, 3, 5) if decades < 30 else (1, 3) if decades < 300 else (1,)
    axis.set_major_locator(LogLocator(subs=parts, numticks=12))
    axis.set_major_formatter(lambda value, _: short(value))
    axis.set_minor_formatter(NullFormatter())
    if decades < 5:  # too short for powers and their parts: ordinary steps
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(LogLocator(subs=()))
    ticks_at(axis, ticks)


def plain_axis(axis: Any, whole: bool = False) -> None:
    """An ordinary axis with the same labels."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=whole))
    axis.set_major_formatter(lambda value, _: short(value))


def ticks_at(axis: Any, values: Sequence[float]) -> None:
    """Ticks at these very values, if they are no more than eight."""
    from matplotlib.ticker import NullLocator

    if 0 < len(distinct := sorted(set(values))) <= 8:
        axis.set_ticks(distinct, [short(value) for value in distinct])
        axis.set_minor_locator(NullLocator())


def word_axis(axes: "Axes", names: Sequence[str]) -> None:
    """Names in place of the numbers 0, 1, … of the x axis."""
    axes.set_xticks(range(len(names)), list(names))
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(axis="x", visible=False)


def short(value: float) -> str:
    """15000 as 15k, 2000000 as 2M; below ten thousand as it is."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _broken(label: str, width: int = 26) -> str:
    """A long label on several lines, broken between its parts."""
    lines = [""]
    for part in label.split(" · ") if len(label) > width else [label]:
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        if lines[-1] and len(joined) > width:
            lines.append(part)
        else:
            lines[-1] = joined
    return "\n".join(lines)
