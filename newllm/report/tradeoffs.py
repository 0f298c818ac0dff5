"""Points with intervals: quality against cache bytes, the metric over each swept axis, the reversal measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from newllm.analysis.labels import SEPARATOR, Flat, axes_of, canonical, choices_of, say, short_keys, varying
from newllm.analysis.metrics import lower_is_better
from newllm.analysis.run_groups import Group
from newllm.report import figures
from newllm.report.figures import Drawing, drawing
from newllm.report.series import BARS, Series, of_drawn, over_seeds, padded
from newllm.report.study import COLOUR_CYCLE, Drawn, Part

BYTES = "kv_cache/bytes_per_token"


def front(cost: np.ndarray, loss: np.ndarray) -> list[int]:
    """Indices of the points on the Pareto front, by rising cost: no other point is lower in one and not higher in the
    other."""
    found: list[int] = []
    for i in np.lexsort((loss, cost)):
        if np.isfinite(loss[i]) and (not found or loss[i] < loss[found[-1]]):
            found.append(int(i))
    return found


def cache(part: Part) -> list[Drawing]:
    """The metric over the bytes of the KV cache, with the groups that no other beats in both.

    Those are drawn even where they are not among the groups of the other figures.
    """
    metric = part.metric
    if lower_is_better(metric) is not True:
        return []
    known = [group for group in part.groups if np.isfinite(group.mean(BYTES)) and np.isfinite(group.mean(metric))]
    cost, quality = (np.array([group.mean(name) for group in known]) for name in (BYTES, metric))
    on_front = [known[i] for i in front(cost, quality)]
    drawn = [one for one in part.drawn if one.group in known]
    more = [group for group in on_front if group not in [one.group for one in drawn]]
    drawn += [Drawn(part.first_index + len(part.drawn) + place, group) for place, group in enumerate(more)]
    if len({one.group.mean(BYTES) for one in drawn}) < 2:
        return []
    series = [of_drawn(one, [one.group.mean(BYTES)], one.group.by_seeds([metric])) for one in drawn]
    figure, (panel,) = figures.panels(height=3.8)
    for one in series:
        figures.points(panel, one)
    x, y = ([group.mean(name) for group in on_front] for name in (BYTES, metric))
    panel.plot(x, y, color=figures.MUTED, linewidth=1, linestyle=figures.DASHED, zorder=1, drawstyle="steps-post")
    figures.log_axis(panel.xaxis)
    panel.set(xlabel="bytes of KV cache per token", ylabel=metric)
    figures.legend(figure, figures.labels_of(series), line=False, mark=True)
    caption = f"{BARS} The dashed line joins the groups that no other group beats in both (Pareto front)."
    return [drawing(f"cache{part.mark}", part.named(f"{metric} against KV cache"), figure, caption)]


def reversal(part: Part) -> list[Drawing]:
    """Accuracy and margin of facts in the trained direction and in the other."""
    chance, there = {"accuracy": 0.5, "margin": 0.0}, {}
    for what in chance:
        names = [f"reversal/{direction}_{what}" for direction in ("forward", "backward")]
        known = [of_drawn(one, [0, 1], one.group.by_seeds(names)) for one in part.drawn]
        if known := [one for one in known if len(one.x) == 2]:
            there[what] = known
    if not there:
        return []
    figure, made = figures.panels(len(there), width=4.2 + 2.2 * len(there))
    for panel, (what, series) in zip(made, there.items(), strict=True):
        for place, one in enumerate(series):
            figures.points(panel, one, figures.aside(place, len(series)))
        figures.mark_value(panel, y=chance[what])
        figures.word_axis(panel, ["forward", "backward"])
        panel.set_title("margin, nats per token" if what == "margin" else what)
    figures.legend(figure, figures.labels_of(*there.values()), line=False, mark=True)
    caption = f"{BARS} The dashed line is chance: the right name no likelier than a wrong one."
    return [drawing(f"reversal{part.mark}", part.named("Facts forward and backward"), figure, caption)]


@dataclass(frozen=True)
class Axis:
    """A swept key: `values` and `rest` (what else sets a group apart, as text) for each group."""

    key: str
    name: str
    values: list[Any]
    rest: list[str]


def axes(part: Part) -> list[Drawing]:
    """One plot per swept axis: numbers as lines over what else is equal, words as points of the drawn groups."""
    made = []
    for place, axis in enumerate(_swept(part.groups)):
        series, names = _over_numbers(axis, part, part.first_index + COLOUR_CYCLE * (place + 100)), None
        if not series:
            values = {group.label: value for group, value in zip(part.groups, axis.values, strict=True)}
            at = [(one, say(values[one.label])) for one in part.drawn if values[one.label] is not None]
            names = list(dict.fromkeys(said for _, said in at))
            series = [of_drawn(one, [names.index(said)], one.group.by_seeds([part.metric])) for one, said in at]
            if len(names) < 2:
                continue
        figure, (panel,) = figures.panels(height=3.6)
        if names is None:
            for one in series:
                figures.band(panel, one, dots=True)
            _number_axis(panel.xaxis, sorted({x for one in series for x in one.x}))
        else:
            drawn = [one for one in series if len(one.x)]
            for one in drawn:
                beside = [other.index for other in drawn if other.x[0] == one.x[0]]
                figures.points(panel, one, figures.aside(beside.index(one.index), len(beside)))
            figures.word_axis(panel, names)
        panel.set(xlabel=axis.name, ylabel=part.metric)
        figures.legend(figure, figures.labels_of(series), line=names is None, mark=True)
        file = f"axis-{axis.key.replace('/', '-').replace('.', '-')}{part.mark}"
        made.append(drawing(file, part.named(f"{part.metric} by {axis.name}"), figure, BARS))
    return made


def _swept(groups: Sequence[Group]) -> list[Axis]:
    """Choices and axes that differ, and those options that differ where choices and axes are equal."""
    settings = [group.settings for group in groups]
    known = {*choices_of(groups[0].config), *(key for group in groups for key in axes_of(group.config))}
    differ = varying(settings)
    keys = [key for key in differ if key in known]
    equal: dict[str, list[Flat]] = {}
    for one in settings:
        equal.setdefault(canonical([one.get(key) for key in keys]), []).append(one)
    keys += dict.fromkeys(key for some in equal.values() for key in varying(some) if key in differ and key not in known)
    short, found = short_keys(keys), []
    for key in keys:
        rest = [canonical([one.get(other) for other in keys if other != key]) for one in settings]
        found.append(Axis(key, short[key], [one.get(key) for one in settings], rest))
    return found


def _over_numbers(axis: Axis, part: Part, first_index: int) -> list[Series]:
    """Lines over a numeric axis, one for each rest that has at least two of its values; nothing over words."""
    known = [value for value in axis.values if value is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return []
    members: dict[str, dict[float, Group]] = {}
    for group, value, rest in zip(part.groups, axis.values, axis.rest, strict=True):
        if value is not None:
            members.setdefault(rest, {})[float(value)] = group
    made = []
    for place, line in enumerate([line for line in members.values() if len(line) > 1][: part.options.curves]):
        x = sorted(line)
        rows = padded([line[value].by_seeds([part.metric])[:, 0] for value in x])
        parts = [said for said in line[x[0]].label.split(SEPARATOR) if not said.startswith(f"{axis.name} ")]
        made.append(over_seeds(first_index + place, SEPARATOR.join(parts) or "all", x, rows))
    return made


def _number_axis(axis: Any, values: list[float]) -> None:
    """Logarithmic if the values are spread by factors."""
    even = len(values) > 2 and np.ptp(np.diff(values)) < 1e-6 * abs(values[-1])
    if min(values) > 0 and max(values) / min(values) >= 2 and not even:
        figures.log_axis(axis, values)
    figures.ticks_at(axis, values)
