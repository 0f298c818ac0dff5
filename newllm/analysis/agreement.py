"""Results beside others that should be like them: published tables, and the same configurations elsewhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from newllm.analysis.grouping import Group
from newllm.analysis.labels import choices_of
from newllm.analysis.reference import distance, published
from newllm.analysis.statistics import sample_std

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Beside:
    """A group's metric beside a published one of the same conditions.

    ours: mean over `n` seeds; std: their sample standard deviation. published: mean over `published_n` runs;
    published_std: theirs, NaN for one. difference: ours / published - 1. run, source, status: which configuration of
    the published tables, where it stands, and whether a log proves it.
    """

    label: str
    run: str
    metric: str
    n: int
    ours: float
    std: float
    published: float
    published_std: float
    published_n: int
    difference: float
    source: str
    status: str


@dataclass(frozen=True)
class Twin:
    """One metric of one configuration and seed in two result sets. difference: b / a - 1, NaN where only a is 0."""

    signature: str
    seed: int
    run_a: str
    run_b: str
    metric: str
    a: float
    b: float
    difference: float


@dataclass(frozen=True)
class Agreement:
    """How two result sets agree on a metric over the configurations that both have.

    runs: compared pairs; equal: those equal to the last bit. mean: of the relative differences; largest: the one
    farthest from 0, with its sign. NaN where no difference is defined.
    """

    metric: str
    runs: int
    equal: int
    mean: float
    largest: float


def beside_published(among: Iterable[Group]) -> list[Beside]:
    """The groups whose conditions are those of a published run, metric by metric."""
    known = {one.run: one for one in published()}
    corpora = {one.conditions.get("data", "") for one in known.values()}
    found = []
    for group in among:
        if choices_of(group.config).get("data") not in corpora and "" not in corpora:
            continue
        seeds = {metric: group.by_seed(metric) for metric in _metrics(group.frame)}
        means = {metric: float(np.mean(list(values.values()))) for metric, values in seeds.items() if values}
        for line in distance(group.config, means):
            values = list(seeds[line["metric"]].values())
            found.append(
                Beside(
                    group.label,
                    line["run"],
                    line["metric"],
                    len(values),
                    line["ours"],
                    sample_std(values),
                    line["published"],
                    float("nan") if line["std"] is None else line["std"],
                    line["runs"],
                    line["difference"],
                    known[line["run"]].source,
                    known[line["run"]].status,
                )
            )
    return found


def against(a: "pd.DataFrame", b: "pd.DataFrame") -> list[Twin]:
    """The finished runs of equal signature in two result sets, metric by metric, in the order of `a`.

    A configuration that is there more than once in one set counts with the mean of its runs.
    """
    ones, others = _by_signature(a), _by_signature(b)
    metrics = [name for name in _metrics(a) if name in b]
    left, right = ({name: side[name].to_numpy(dtype=float).tolist() for name in metrics} for side in (a, b))
    seeds, paths_a, paths_b = a["seed"].tolist(), a["path"].tolist(), b["path"].tolist()
    return [
        Twin(signature, seeds[here[0]], paths_a[here[0]], paths_b[there[0]], name, x, y, _relative(x, y))
        for signature, here in ones.items()
        if (there := others.get(signature)) is not None
        for name in metrics
        if isfinite(x := _mean(left[name], here)) and isfinite(y := _mean(right[name], there))
    ]


def agreement(twins: Sequence[Twin]) -> list[Agreement]:
    """`twins` summed up by metric."""
    by_metric: dict[str, list[Twin]] = {}
    for twin in twins:
        by_metric.setdefault(twin.metric, []).append(twin)
    summed = []
    for metric, some in by_metric.items():
        known = [twin.difference for twin in some if np.isfinite(twin.difference)]
        equal = sum(twin.a == twin.b for twin in some)
        mean, largest = (float(np.mean(known)), max(known, key=abs)) if known else (float("nan"), float("nan"))
        summed.append(Agreement(metric, len(some), equal, mean, largest))
    return summed


def _by_signature(frame: "pd.DataFrame") -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, (state, signature) in enumerate(zip(frame["state"], frame["signature"], strict=True)):
        if state == "done":
            rows.setdefault(signature, []).append(row)
    return rows


def _mean(column: Sequence[float], rows: Sequence[int]) -> float:
    return column[rows[0]] if len(rows) == 1 else sum(column[row] for row in rows) / len(rows)


def _relative(a: float, b: float) -> float:
    if a == b:
        return 0.0
    return b / a - 1 if a else float("nan")


def _metrics(frame: "pd.DataFrame") -> list[str]:
    return [str(name) for name in frame if "/" in str(name)]
