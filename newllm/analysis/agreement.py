"""How far apart the results of equal configurations are: of two sets of runs, and of runs and published tables."""

from collections.abc import Iterable, Mapping
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from newllm.analysis.frame import metric_names
from newllm.analysis.published import Distance, distance, published_runs
from newllm.analysis.run_groups import Group, lost_runs
from newllm.analysis.scored import fingerprint
from newllm.analysis.settings import identity_of, nodes_of, places_of


def pair_runs(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """The finished runs of equal signature in two tables of runs, a row per run and metric, in the order of `a`.

    Columns: signature, seed, run_a, run_b (paths), metric, a, b, difference (b / a - 1; NaN where only a is 0). A
    configuration that is in one table more than once counts with the mean of its runs. Numbers of other tokens than
    those that the first of its runs in `a` scored are left out.
    """
    metrics = [name for name in metric_names(a) if name in b]
    scored = dict(a[a["state"] == "done"].drop_duplicates("signature")[["signature", "scored"]].to_numpy().tolist())

    def by_signature(frame: pd.DataFrame) -> Any:
        done = frame[frame["state"] == "done"]
        runs = list(zip(done["scored"], done["signature"].map(scored), strict=True))
        same = {name: [fingerprint(own, name) == fingerprint(first, name) for own, first in runs] for name in metrics}
        return done.assign(**{name: done[name].where(same[name]) for name in metrics}).groupby("signature", sort=False)

    here, there = by_signature(a), by_signature(b[b["signature"].isin(scored)])
    values = here[metrics].mean().stack().rename("a").to_frame()
    values = values.join(there[metrics].mean().stack().rename("b"), how="inner")
    pairs = values[np.isfinite(values).all(axis=1)].rename_axis(["signature", "metric"]).reset_index()
    for column, (runs, name) in {"seed": (here, "seed"), "run_a": (here, "path"), "run_b": (there, "path")}.items():
        pairs[column] = pairs["signature"].map(runs[name].first())
    ratio = pairs["b"] / pairs["a"].replace(0, nan) - 1
    return pairs.assign(difference=ratio.where(pairs["a"] != pairs["b"], 0.0))


def only_in_one(a: pd.DataFrame, b: pd.DataFrame, metric: str) -> int:
    """How many signatures have a finite metric in one table, and in the other only runs that diverged or failed."""

    def finite_and_not(frame: pd.DataFrame) -> tuple[set[str], set[str]]:
        finite = np.isfinite(frame[metric]) if metric in frame else np.zeros(len(frame), dtype=bool)
        null = frame["not_finite"].map(lambda names: metric in names).to_numpy(dtype=bool)
        signatures = frame["signature"]
        return {*signatures[finite]}, {*signatures[null | lost_runs(frame)]} - {*signatures[finite]}

    (here, not_here), (there, not_there) = finite_and_not(a), finite_and_not(b)
    return len(here & not_there) + len(there & not_here)


def summarize(pairs: pd.DataFrame) -> pd.DataFrame:
    """`pair_runs` by metric: runs (compared pairs), equal (those equal to the last bit), mean and largest (farthest
    from 0, with its sign) of the relative differences, NaN where none is defined."""
    rows = []
    for metric, some in pairs.groupby("metric", sort=False):
        known = some["difference"].dropna().to_numpy()
        mean, largest = (float(known.mean()), max(known.tolist(), key=abs)) if len(known) else (nan, nan)
        rows.append((metric, len(some), int((some["a"] == some["b"]).sum()), mean, largest))
    return pd.DataFrame(rows, columns=["metric", "runs", "equal", "mean", "largest"])


def compare_groups(groups: Iterable[Group]) -> list[tuple[Group, Distance]]:
    """The means of each group with the conditions of a published run; NaN where seeds are missing."""
    corpora = {run.conditions.get("data", "") for run in published_runs()}
    found = []
    for group in groups:
        if group.config["choices"].get("data") in corpora or "" in corpora:
            means = {name: group.mean(name) for name in metric_names(group.frame) if group.by_seed(name)}
            found += [(group, one) for one in _distance_of_all(group, means)]
    return found


def _distance_of_all(group: Group, means: Mapping[str, float]) -> list[Distance]:
    """Those of `distance` that hold for every run: in groups made by chosen keys, other settings may differ."""
    found = distance(group.config, means) if means else []
    if found:
        configs = group.runs["config"].tolist()
        for place, *_ in list(places_of(map(identity_of, nodes_of(configs))).values())[1:]:
            others = [(one.run, one.metric) for one in distance(configs[place], means)]
            found = [one for one in found if (one.run, one.metric) in others]
    return found
