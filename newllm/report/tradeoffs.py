"""Quality against cache bytes, the metric over each swept axis, the reversal measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from newllm.analysis.groups import Group
from newllm.analysis.labels import SEPARATOR, axes_of, canonical, choices_of, say, short_keys, varying
from newllm.analysis.metrics import lower_is_better
from newllm.report.drawing import Drawing, drawing
from newllm.report.figures.points import Sweep, bars, front, pareto, sweep
from newllm.report.figures.series import Series, over_seeds
from newllm.report.study import COLOUR_CYCLE, Drawn, Part, by_seed, mean_of

BARS = "Mean over seeds; bars are ± one sample standard deviation."
BYTES = "kv_cache/bytes_per_token"


def cache(part: Part, metric: str) -> list[Drawing]:
    """The metric over the bytes of the KV cache, with the groups that no other beats in both.

    Those are drawn even where they are not among the groups of the other figures.
    """
    if lower_is_better(metric) is not True or BYTES not in part.groups[0].frame:
        return []
    cost = {group.label: mean_of(group, BYTES) for group in part.groups}
    known = [g for g in part.groups if np.isfinite(cost[g.label]) and np.isfinite(mean_of(g, metric))]
    best = front(np.array([cost[g.label] for g in known]), np.array([mean_of(g, metric) for g in known]))
    drawn = [one for one in part.drawn if any(one.group is group for group in known)]
    more = [known[i] for i in best if not any(known[i] is one.group for one in drawn)]
    drawn += [Drawn(part.first_index + len(part.drawn) + place, group) for place, group in enumerate(more)]
    if len({cost[one.group.label] for one in drawn}) < 2:
        return []
    points = [
        over_seeds(one.index, one.group.label, [cost[one.group.label]], by_seed(one.group, [metric])) for one in drawn
    ]
    caption = f"{BARS} The dashed line joins the groups that none undercuts in both (Pareto front)."
    figure = pareto(points, "bytes of KV cache per token", metric)
    return [drawing(f"cache{part.mark}", part.named(f"{metric} against KV cache"), figure, caption)]


def swept(part: Part, metric: str) -> list[Drawing]:
    """One plot per swept axis: numbers as lines over what else is equal, choices as points of the groups."""
    made = []
    for place, axis in enumerate(_axes(part.groups)):
        data = _numbers(axis, part, metric, part.first_index + COLOUR_CYCLE * (place + 100))
        data = data or _words(axis, part, metric)
        if data is not None:
            name = axis.key.replace("/", "-").replace(".", "-")
            title = part.named(f"{metric} by {axis.name}")
            made.append(drawing(f"axis-{name}{part.mark}", title, sweep(data, metric), BARS))
    return made


def reversal(part: Part) -> list[Drawing]:
    """Accuracy and margin in the trained direction and in the other."""
    panels: dict[str, Sequence[Series]] = {}
    for what, title in (("accuracy", "accuracy"), ("margin", "margin, nats per token")):
        names = [f"reversal/{direction}_{what}" for direction in ("forward", "backward")]
        rows = {one: by_seed(one.group, names) for one in part.drawn}
        known = [over_seeds(one.index, one.group.label, [0, 1], row) for one, row in rows.items()]
        known = [series for series in known if len(series.x) == 2]
        if known:
            panels[title] = known
    if not panels:
        return []
    figure = bars(dict(panels), ["forward", "backward"], {"accuracy": 0.5, "margin, nats per token": 0.0})
    caption = f"{BARS} The dashed line is chance: the right name no likelier than a wrong one."
    return [drawing(f"reversal{part.mark}", part.named("Facts forward and backward"), figure, caption)]


@dataclass(frozen=True)
class Axis:
    """A swept key: `values` and `rest` (what else sets a group apart, as text) for each group."""

    key: str
    name: str
    values: list[Any]
    rest: list[str]


def _axes(groups: Sequence[Group]) -> list[Axis]:
    """Choices and axes that differ, and those options that differ where choices and axes are equal."""
    settings = [group.settings for group in groups]
    choices = set(choices_of(groups[0].config))
    roots = {key for group in groups for key in axes_of(group.config)}
    keys = varying(settings)
    main = [key for key in keys if key in choices | roots]
    options = _own_options(settings, main, [key for key in keys if key not in main])
    short = short_keys([*main, *options])
    found = []
    for key in [*main, *options]:
        others = [other for other in [*main, *options] if other != key]
        rest = [canonical([one.get(other) for other in others]) for one in settings]
        found.append(Axis(key, short[key], [one.get(key) for one in settings], rest))
    return found


def _own_options(settings: Sequence[dict[str, Any]], main: Sequence[str], others: Sequence[str]) -> list[str]:
    alike: dict[str, list[dict[str, Any]]] = {}
    for one in settings:
        alike.setdefault(canonical([one.get(key) for key in main]), []).append(one)
    found = dict.fromkeys(key for members in alike.values() for key in varying(members) if key in others)
    return list(found)


def _numbers(axis: Axis, part: Part, metric: str, first_index: int) -> Sweep | None:
    """Lines over a numeric axis, one for each rest that has at least two of its values."""
    known = [value for value in axis.values if value is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return None
    members: dict[str, dict[float, Group]] = {}
    for group, value, rest in zip(part.groups, axis.values, axis.rest, strict=True):
        if value is not None:
            members.setdefault(rest, {})[float(value)] = group
    lines = [line for line in members.values() if len(line) > 1][: part.options.curves]
    if not lines:
        return None
    series = []
    for place, line in enumerate(lines):
        x = sorted(line)
        rows = _padded([by_seed(line[value], [metric])[:, 0] for value in x])
        series.append(over_seeds(first_index + place, _without(line[x[0]].label, axis.name), x, rows))
    return Sweep(axis.name, sorted({x for line in lines for x in line}), series)


def _words(axis: Axis, part: Part, metric: str) -> Sweep | None:
    """Points over the values of a choice: every drawn group at its own."""
    of = {group.label: value for group, value in zip(part.groups, axis.values, strict=True)}
    names = dict.fromkeys(say(of[one.group.label]) for one in part.drawn if of[one.group.label] is not None)
    if len(names) < 2:
        return None
    series = []
    for one in part.drawn:
        value = of[one.group.label]
        if value is not None:
            at = list(names).index(say(value))
            series.append(over_seeds(one.index, one.group.label, [at], by_seed(one.group, [metric])))
    return Sweep(axis.name, list(names), [one for one in series if len(one.x)])


def _padded(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Columns of different lengths as rows [most, columns], filled up with NaN."""
    most = max(map(len, columns))
    return np.stack([np.pad(column, (0, most - len(column)), constant_values=np.nan) for column in columns], axis=1)


def _without(label: str, axis: str) -> str:
    """A group's label without what it says of the axis."""
    parts = [part for part in label.split(SEPARATOR) if not part.startswith(f"{axis} ")]
    return SEPARATOR.join(parts) or "all"
