"""Points with intervals: quality against cache bytes, the metric over each swept axis, the reversal measures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from newllm.analysis.labels import SEPARATOR, short_keys, value_text
from newllm.analysis.metrics import lower_is_better
from newllm.analysis.run_groups import Group
from newllm.analysis.settings import axes_of, canonical, choices_of, differing, places_of
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


def metric_by_axis(part: Part) -> list[Drawing]:
    """A figure per swept axis: over numbers a line for all that is equal otherwise, over words points of the groups."""
    drawings, keys = [], _swept_keys(part.groups)
    for place, (key, name) in enumerate(short_keys(keys).items()):
        values = {group: group.settings.get(key) for group in part.groups}
        rest = {group: canonical([group.settings.get(k) for k in keys if k != key]) for group in part.groups}
        known = [value for value in values.values() if value is not None]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
        first_index = part.first_index + COLOUR_CYCLE * (place + 100)
        series = _lines_over_numbers(part, name, values, rest, first_index) if numeric else []
        if numbers := sorted({x for one in series for x in one.x}):
            even = len(numbers) > 2 and np.ptp(np.diff(numbers)) < 1e-6 * abs(numbers[-1])
            log = min(numbers) > 0 and max(numbers) / min(numbers) >= 2 and not even
            panel = Panel(series, name, part.metric, log_x=log)
        else:
            word_of = {one: value_text(values[one.group]) for one in part.drawn if values[one.group] is not None}
            words = list(dict.fromkeys(word_of.values()))
            if len(words) < 2:
                continue
            series = []
            for one, word in word_of.items():
                column = one.group.by_seeds([part.metric]).set_axis([words.index(word)], axis=1)
                series.append(one.series(column))
            panel = Panel(series, name, part.metric, points=True, words=words)
        file = f"axis-{key.replace('/', '-').replace('.', '-')}"
        drawings += part.figure(file, f"{part.metric} by {name}", [panel], BARS, height=3.6)
    return drawings


def _swept_keys(groups: Sequence[Group]) -> list[str]:
    """The choices and axes that differ, and those options that differ where choices and axes are equal."""
    settings = [group.settings for group in groups]
    named = {*choices_of(groups[0].config), *(key for group in groups for key in axes_of(group.config))}
    keys = differing(settings, missing_differs=True)
    axes, options = [key for key in keys if key in named], [key for key in keys if key not in named]
    for places in places_of(canonical([one.get(key) for key in axes]) for one in settings).values():
        differ = differing([settings[place] for place in places], missing_differs=True)
        axes += [key for key in differ if key in options and key not in axes]
    return axes


def _lines_over_numbers(
    part: Part, name: str, values: Mapping[Group, float | None], rest: Mapping[Group, str], first_index: int
) -> list[Series]:
    """A line for each rest that has at least two of the values."""
    lines: dict[str, dict[float, Group]] = {}
    for group, value in values.items():
        if value is not None:
            lines.setdefault(rest[group], {})[float(value)] = group
    series = []
    long_lines = [line for line in lines.values() if len(line) > 1][: part.options.curves]
    for index, line in enumerate(long_lines, first_index):
        words = [word for word in line[min(line)].label.split(SEPARATOR) if not word.startswith(f"{name} ")]
        columns = [group.by_seeds([part.metric]).set_axis([value], axis=1) for value, group in line.items()]
        table = pd.concat(columns, axis=1)
        series.append(Series.over_seeds(index, SEPARATOR.join(words) or "all", table))
    return series
