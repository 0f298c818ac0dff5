"""Main effects and interactions of the factors of a crossed sweep, as pairs of groups for `judge`.

The main effect of a value is its difference to the factor's reference value, averaged with equal weights over all
combinations of the other factors in which both were trained. An interaction of two values is how much such a
difference changes where a second factor leaves its reference value. Both are computed seed by seed, from the seeds that
all these groups have, and tested over the seeds with Student's t. So the combinations are fixed, and the seeds are the
sample: neither equal variances nor independent runs of one seed are assumed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import prod

import numpy as np

from newllm.analysis.comparison import Comparison, paired
from newllm.analysis.labels import SEPARATOR, value_text
from newllm.analysis.metrics import Scale, scale_of
from newllm.analysis.run_groups import Group
from newllm.analysis.settings import canonical

Terms = Sequence[Sequence[tuple[int, Group]]]  # of each combination, the groups to add (1) and to subtract (-1)

LEAST_COMPLETE = 0.75  # of all combinations must have been trained


@dataclass(frozen=True)
class Crossing:
    """factors: name -> its values. cells: a value of each factor -> the group that has them."""

    factors: Mapping[str, Sequence[str]]
    cells: Mapping[tuple[str, ...], Group]

    def values_of(self, group: Group) -> tuple[str, ...]:
        return next(values for values, one in self.cells.items() if one is group)


@dataclass(frozen=True)
class Effect:
    """factor: its name, or those of two. change: which values are compared. over: combinations that were averaged.

    comparison: without a verdict, for `judge`.
    """

    factor: str
    change: str
    over: int
    comparison: Comparison


def find_crossing(groups: Sequence[Group]) -> Crossing | None:
    """The crossing of at least two factors that the groups are, with at least LEAST_COMPLETE of its combinations; None
    if they are none.

    A factor is a choice, axis or option in which groups differ. What follows from another factor is no factor of its
    own: a setting that only some values of it have (kv_dim of attention=mla) makes several values of it.
    """
    keys = [key for key in groups[0].settings if key != "evaluated"] if groups else []
    column = {key: [canonical(group.settings.get(key)) for group in groups] for key in keys}
    parts: dict[str, list[str]] = {}
    for key in keys:
        owner = next((name for name in parts if _follows(column[key], column[name])), None)
        parts.setdefault(owner or key, []).append(key)
    names = {name: [SEPARATOR.join(_texts(group, some)) for group in groups] for name, some in parts.items()}
    cells = dict(zip(zip(*names.values(), strict=True), groups, strict=True)) if names else {}
    factors = {name: list(dict.fromkeys(values)) for name, values in names.items()}
    if len(factors) < 2 or len(cells) < len(groups) or len(cells) < LEAST_COMPLETE * prod(map(len, factors.values())):
        return None
    return Crossing(factors, cells)


def _follows(values: Sequence[str], owner: Sequence[str]) -> bool:
    """Whether the value of `owner` determines the value, or determines if there is one."""
    told: dict[str, set[str]] = {}
    for value, by in zip(values, owner, strict=True):
        told.setdefault(by, set()).add(value)
    missing = canonical(None)
    some_miss = missing in values and any(value != missing for value in values)
    return all(len(some) == 1 for some in told.values()) or (
        some_miss and all(missing not in some or len(some) == 1 for some in told.values())
    )


def _texts(group: Group, keys: Sequence[str]) -> list[str]:
    """The values of a factor's settings in words; the first is the factor itself."""
    first, *others = keys
    texts = [value_text(group.settings.get(first))]
    known = [key for key in others if group.settings.get(key) is not None]
    return texts + [f"{key.rpartition('.')[2]} {value_text(group.settings[key])}" for key in known]


def main_effects(crossing: Crossing, reference: Group, metric: str) -> list[Effect]:
    """The effect of each value of each factor against the value of `reference`, where it is an average of at least two
    combinations of the other factors."""
    effects, cells, usual = [], _measured(crossing, metric), crossing.values_of(reference)
    for place, (name, values) in enumerate(crossing.factors.items()):
        for value in values:
            own = [cell for cell in cells if cell[place] == value != usual[place]]
            pairs = [(cell, other) for cell in own if (other := _with(cell, place, usual[place])) in cells]
            ours, theirs = ([[(1, cells[pair[side]])] for pair in pairs] for side in (0, 1))
            if len(pairs) > 1:
                effects.append(_effect(name, f"{value} against {usual[place]}", metric, ours, theirs))
    return effects


def interactions(crossing: Crossing, reference: Group, metric: str) -> list[Effect]:
    """For each two values of two factors: how the first one's difference to its value in `reference` changes where the
    second factor has the second value instead of that of `reference`."""
    effects, cells, usual = [], _measured(crossing, metric), crossing.values_of(reference)
    for (a, first), (b, second) in combinations(enumerate(crossing.factors), 2):
        for one, other in product(crossing.factors[first], crossing.factors[second]):
            changed, same = [], []
            for both in (cell for cell in cells if (cell[a], cell[b]) == (one, other)):
                without, alone, neither = (_with(_with(both, a, x), b, y) for x, y in
                                           ((usual[a], other), (one, usual[b]), (usual[a], usual[b])))  # fmt: skip
                if {without, alone, neither} <= cells.keys() and one != usual[a] and other != usual[b]:
                    changed.append([(1, cells[both]), (-1, cells[without])])
                    same.append([(1, cells[alone]), (-1, cells[neither])])
            if changed:
                change = f"{one} against {usual[a]}, with {other} against with {usual[b]}"
                effects.append(_effect(f"{first}{SEPARATOR}{second}", change, metric, changed, same))
    # In neither direction is an interaction good.
    return [replace(one, comparison=replace(one.comparison, lower_is_better=None)) for one in effects]


def _measured(crossing: Crossing, metric: str) -> dict[tuple[str, ...], Group]:
    """The cells whose groups have the metric, or were to have it."""
    return {cell: one for cell, one in crossing.cells.items() if one.by_seed(metric) or one.missing(metric)}


def _effect(factor: str, change: str, metric: str, side: Terms, other: Terms) -> Effect:
    """The effect; without numbers if a seed of one of the groups diverged or failed."""
    groups = [*dict.fromkeys(group for terms in (*side, *other) for _, group in terms)]
    incomplete = "; ".join(f"{group.label}: {words}" for group in groups if (words := group.missing_words(metric)))
    measured = {group: group.by_seed(metric) for group in groups}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in measured.values())))
    values = {group: np.array([by_seed[seed] for seed in seeds]) for group, by_seed in measured.items()}
    log = scale_of(metric) == "log" and all((one > 0).all() for one in values.values())

    def averaged(some: Terms) -> dict[int, float]:
        scaled = [[sign * (np.log(values[one]) if log else values[one]) for sign, one in terms] for terms in some]
        mean = np.array(scaled).sum(axis=1).mean(axis=0)  # [combinations, terms, seeds]
        with np.errstate(over="ignore"):
            return dict(zip(seeds, (np.exp(mean) if log else mean).tolist(), strict=True))

    scale: Scale = "log" if log else "difference"
    comparison = paired(change, change, metric, scale, averaged(side), averaged(other), incomplete)
    return Effect(factor, change, len(side), comparison)


def _with(cell: tuple[str, ...], place: int, value: str) -> tuple[str, ...]:
    return (*cell[:place], value, *cell[place + 1 :])
