"""Points with intervals: quality against cache bytes, the metric over each swept axis, the reversal measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from newllm.analysis.labels import SEPARATOR, Flat, axes_of, canonical, choices_of, say, short_keys, varying
from newllm.analysis.metrics import lower_is_better
from newllm.analysis.run_groups import Group
from newllm.report.figures import DASHED, MUTED, Drawing, Panel, Series, plot
from newllm.report.series import BARS
from newllm.report.study import COLOUR_CYCLE, DrawnGroup, Part

BYTES = "kv_cache/bytes_per_token"


def pareto_front(cost: np.ndarray, loss: np.ndarray) -> list[int]:
    """Indices of the points on the Pareto front, by rising cost: no other point is lower in one and not higher in the
    other."""
    front: list[int] = []
    for i in np.lexsort((loss, cost)):
        if np.isfinite(loss[i]) and (not front or loss[i] < loss[front[-1]]):
            front.append(int(i))
    return front


def quality_and_cache(part: Part) -> list[Drawing]:
    """The metric over the bytes of the KV cache, with the Pareto front.

    The groups on the front are drawn even where they are not among the groups of the other figures.
    """
    metric = part.metric
    if lower_is_better(metric) is not True:
        return []
    measured = [group for group in part.groups if np.isfinite(group.mean(BYTES)) and np.isfinite(group.mean(metric))]
    cost, loss = (np.array([group.mean(name) for group in measured]) for name in (BYTES, metric))
    front = pareto_front(cost, loss)
    drawn = [one for one in part.drawn if one.group in measured]
    more = [measured[i] for i in front if measured[i] not in [one.group for one in drawn]]
    drawn += [DrawnGroup(part.first_index + len(part.drawn) + place, group) for place, group in enumerate(more)]
    if len({one.group.mean(BYTES) for one in drawn}) < 2:
        return []
    columns = [one.group.by_seeds([metric]).set_axis([one.group.mean(BYTES)], axis=1) for one in drawn]
    series = [one.series(column) for one, column in zip(drawn, columns, strict=True)]
    figure = plot([Panel(series, "bytes of KV cache per token", metric, log_x=True, points=True)], height=3.8)
    look: dict[str, Any] = {"color": MUTED, "linewidth": 1, "linestyle": DASHED, "zorder": 1, "drawstyle": "steps-post"}
    figure.axes[0].plot(cost[front], loss[front], **look)
    caption = f"{BARS} The dashed line joins the groups that no other group beats in both (Pareto front)."
    return [part.drawing("cache", f"{metric} against KV cache", figure, caption)]


def reversal(part: Part) -> list[Drawing]:
    """Accuracy and margin of facts in the trained direction and in the other."""
    directions, panels = ["forward", "backward"], []
    for measure, title, chance in (("accuracy", "accuracy", 0.5), ("margin", "margin, nats per token", 0.0)):
        names = [f"reversal/{direction}_{measure}" for direction in directions]
        series = [one.series(one.group.by_seeds(names).set_axis([0, 1], axis=1)) for one in part.drawn]
        series = [one for one in series if len(one.x) == 2]
        panels.append(Panel(series, title=title, points=True, words=directions, mark_y=chance))
    caption = f"{BARS} The dashed line is chance: the right name is no likelier than a wrong one."
    measured = sum(bool(panel.series) for panel in panels)
    return part.figure("reversal", "Facts forward and backward", panels, caption, width=4.2 + 2.2 * measured)


@dataclass(frozen=True)
class SweptAxis:
    """A key that was swept: its value in each group, and what else sets that group apart, as text."""

    key: str
    name: str
    values: list[Any]
    rest: list[str]


def metric_by_axis(part: Part) -> list[Drawing]:
    """A figure per swept axis: over numbers a line for all that is equal otherwise, over words points of the groups."""
    drawings = []
    for place, axis in enumerate(_swept_axes(part.groups)):
        series = _lines_over_numbers(axis, part, part.first_index + COLOUR_CYCLE * (place + 100))
        if series:
            numbers = sorted({x for one in series for x in one.x})
            even = len(numbers) > 2 and np.ptp(np.diff(numbers)) < 1e-6 * abs(numbers[-1])
            log = min(numbers) > 0 and max(numbers) / min(numbers) >= 2 and not even
            panel = Panel(series, axis.name, part.metric, log_x=log)
        else:
            values = dict(zip(part.groups, axis.values, strict=True))
            word_of = {one: say(values[one.group]) for one in part.drawn if values[one.group] is not None}
            words = list(dict.fromkeys(word_of.values()))
            if len(words) < 2:
                continue
            for one, word in word_of.items():
                column = one.group.by_seeds([part.metric]).set_axis([words.index(word)], axis=1)
                series.append(one.series(column))
            panel = Panel(series, axis.name, part.metric, points=True, words=words)
        name = f"axis-{axis.key.replace('/', '-').replace('.', '-')}"
        drawings += part.figure(name, f"{part.metric} by {axis.name}", [panel], BARS, height=3.6)
    return drawings


def _swept_axes(groups: Sequence[Group]) -> list[SweptAxis]:
    """The choices and axes that differ, and those options that differ where choices and axes are equal."""
    settings = [group.settings for group in groups]
    named = {*choices_of(groups[0].config), *(key for group in groups for key in axes_of(group.config))}
    different = varying(settings)
    keys = [key for key in different if key in named]
    equal: dict[str, list[Flat]] = {}
    for one in settings:
        equal.setdefault(canonical([one.get(key) for key in keys]), []).append(one)
    keys += dict.fromkeys(
        key for some in equal.values() for key in varying(some) if key in different and key not in named
    )
    names, axes = short_keys(keys), []
    for key in keys:
        rest = [canonical([one.get(other) for other in keys if other != key]) for one in settings]
        axes.append(SweptAxis(key, names[key], [one.get(key) for one in settings], rest))
    return axes


def _lines_over_numbers(axis: SweptAxis, part: Part, first_index: int) -> list[Series]:
    """A line for each rest that has at least two of the axis's values; none where the values are words."""
    values = [value for value in axis.values if value is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return []
    by_rest: dict[str, dict[float, Group]] = {}
    for group, value, rest in zip(part.groups, axis.values, axis.rest, strict=True):
        if value is not None:
            by_rest.setdefault(rest, {})[float(value)] = group
    lines = [line for line in by_rest.values() if len(line) > 1][: part.options.curves]
    series = []
    for index, line in enumerate(lines, first_index):
        words = [word for word in line[min(line)].label.split(SEPARATOR) if not word.startswith(f"{axis.name} ")]
        table = pd.DataFrame({value: group.by_seed(part.metric) for value, group in line.items()})
        series.append(Series.over_seeds(index, SEPARATOR.join(words) or "all", table))
    return series
