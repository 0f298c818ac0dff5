"""The same configurations in two sets of runs, as from two machines: how far their results are apart."""

from math import nan

import numpy as np
import pandas as pd

from newllm.analysis.frame import metric_names


def against(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """The finished runs of equal signature in two tables of runs, a row per run and metric, in the order of `a`.

    Columns: signature, seed, run_a, run_b (paths), metric, a, b, difference (b / a - 1; NaN where only a is 0). A
    configuration that is in one table more than once counts with the mean of its runs.
    """
    metrics = [name for name in metric_names(a) if name in b]
    sides = []
    for frame in (a, b):
        runs = frame[frame["state"] == "done"].groupby("signature", sort=False)
        sides.append(runs[metrics].mean().join(runs[["seed", "path"]].first()))
    here, there = sides
    both = here.index.intersection(there.index, sort=False)
    rows = [
        (signature, here.at[signature, "seed"], here.at[signature, "path"], there.at[signature, "path"], metric, x, y)
        for signature in both
        for metric, x, y in zip(metrics, here.loc[signature, metrics], there.loc[signature, metrics], strict=True)
        if np.isfinite(x) and np.isfinite(y)
    ]
    found = pd.DataFrame(rows, columns=["signature", "seed", "run_a", "run_b", "metric", "a", "b"])
    difference = [0.0 if x == y else y / x - 1 if x else nan for x, y in zip(found["a"], found["b"], strict=True)]
    return found.assign(difference=difference)


def agreement(pairs: pd.DataFrame) -> pd.DataFrame:
    """`against` summed up, a row per metric: runs (compared pairs), equal (those equal to the last bit), mean and
    largest (farthest from 0, with its sign) of the relative differences, NaN where none is defined."""
    rows = []
    for metric, some in pairs.groupby("metric", sort=False):
        known = some["difference"].dropna().tolist()
        mean, largest = (float(np.mean(known)), max(known, key=abs)) if known else (nan, nan)
        rows.append((metric, len(some), int((some["a"] == some["b"]).sum()), mean, largest))
    return pd.DataFrame(rows, columns=["metric", "runs", "equal", "mean", "largest"])
