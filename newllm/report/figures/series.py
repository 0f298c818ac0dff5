"""What the figures are drawn from: for each group, points with their mean over seeds and an interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Series:
    """One group in one panel. All arrays have one length; low and high are NaN where there is one seed."""

    index: int
    label: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def over_seeds(index: int, label: str, x: Sequence[float] | np.ndarray, rows: np.ndarray, log: bool = False) -> Series:
    """Mean ± sample standard deviation of rows [seeds, points]; `log` averages logarithms (geometric mean).

    NaN entries are left out point by point; points that no seed has are dropped.
    """
    rows = np.atleast_2d(np.asarray(rows, dtype=float))
    values = np.log(rows) if log else rows
    known = np.isfinite(values)
    there = known.sum(axis=0)
    kept = there > 0
    values, known, there = np.where(known, values, 0.0)[:, kept], known[:, kept], there[kept]
    mean = values.sum(axis=0) / there
    squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
    std = np.where(there > 1, np.sqrt(squares / np.maximum(there - 1, 1)), np.nan)
    low, high = mean - std, mean + std
    if log:
        mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
    return Series(index, label, np.asarray(x, dtype=float)[kept], mean, low, high)
