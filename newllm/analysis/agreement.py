"""The same configurations in two sets of runs, as from two machines: how far apart their results are."""

from math import nan

import numpy as np
import pandas as pd

from newllm.analysis.frame import metric_names


def pair_runs(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """The finished runs of equal signature in two tables of runs, a row per run and metric, in the order of `a`.

    Columns: signature, seed, run_a, run_b (paths), metric, a, b, difference (b / a - 1; NaN where only a is 0). A
    configuration that is in one table more than once counts with the mean of its runs.
    """
    metrics = [name for name in metric_names(a) if name in b]
    here, there = (frame[frame["state"] == "done"].groupby("signature", sort=False) for frame in (a, b))
    values = here[metrics].mean().stack().rename("a").to_frame()
    values = values.join(there[metrics].mean().stack().rename("b"), how="inner")
    pairs = values[np.isfinite(values).all(axis=1)].rename_axis(["signature", "metric"]).reset_index()
    for column, (runs, name) in {"seed": (here, "seed"), "run_a": (here, "path"), "run_b": (there, "path")}.items():
        pairs[column] = pairs["signature"].map(runs[name].first())
    ratio = pairs["b"] / pairs["a"].replace(0, nan) - 1
    return pairs.assign(difference=ratio.where(pairs["a"] != pairs["b"], 0.0))


def summarize(pairs: pd.DataFrame) -> pd.DataFrame:
    """`pair_runs` by metric: runs (compared pairs), equal (those equal to the last bit), mean and largest (farthest
    from 0, with its sign) of the relative differences, NaN where none is defined."""
    rows = []
    for metric, some in pairs.groupby("metric", sort=False):
        known = some["difference"].dropna().to_numpy()
        mean, largest = (float(known.mean()), max(known.tolist(), key=abs)) if len(known) else (nan, nan)
        rows.append((metric, len(some), int((some["a"] == some["b"]).sum()), mean, largest))
    return pd.DataFrame(rows, columns=["metric", "runs", "equal", "mean", "largest"])
