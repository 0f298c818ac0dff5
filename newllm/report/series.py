"""What figures are drawn from: for each group, means over seeds at some points, from results and from files of runs."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from newllm.analysis.run_groups import Group
from newllm.report.figures import Series
from newllm.report.study import Drawn, Part

BAND = "Mean over seeds; the band is ± one sample standard deviation."
GEOMETRIC = "Geometric mean over seeds; the band is ± one sample standard deviation of ln perplexity."
BARS = "Mean over seeds; bars are ± one sample standard deviation."

MOST_SEEDS = 24  # runs of one group whose files are read

At = list[tuple[float, str]]  # number, metric; by rising number
Content = TypeVar("Content")


def over_seeds(index: int, label: str, x: Sequence[float] | np.ndarray, rows: np.ndarray, log: bool = False) -> Series:
    """Mean ± sample standard deviation of rows [seeds, points]; `log` averages logarithms (geometric mean).

    NaN entries are left out point by point; points that no seed has are dropped.
    """
    rows = np.atleast_2d(np.asarray(rows, dtype=float))
    values = np.log(rows) if log else rows
    known = np.isfinite(values)
    seeds = known.sum(axis=0)
    kept = seeds > 0
    values, known, seeds = np.where(known, values, 0.0)[:, kept], known[:, kept], seeds[kept]
    mean = values.sum(axis=0) / seeds
    squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
    std = np.where(seeds > 1, np.sqrt(squares / np.maximum(seeds - 1, 1)), np.nan)
    low, high = mean - std, mean + std
    if log:
        mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
    return Series(index, label, np.asarray(x, dtype=float)[kept], mean, low, high)


def of_drawn(one: Drawn, x: Sequence[float] | np.ndarray, rows: np.ndarray, log: bool = False) -> Series:
    return over_seeds(one.index, one.group.label, x, rows, log)


def padded(columns: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    """Columns of different lengths as rows [longest, columns], filled up with NaN."""
    longest = max(map(len, columns))
    rows = [np.pad(np.asarray(one, float), (0, longest - len(one)), constant_values=np.nan) for one in columns]
    return np.stack(rows, axis=1)


def stacked(rows: Sequence[Mapping[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Mappings x -> value of several runs as x and rows [runs, points], NaN where a run lacks a point."""
    x = sorted({at for row in rows for at in row})
    return np.array(x, dtype=float), np.array([[row.get(at, np.nan) for at in x] for row in rows], dtype=float)


def at_number(part: Part, pattern: str, number: Callable[..., float] = float) -> At:
    """The metrics of the part's runs whose whole name matches `pattern`, as `extrapolation/ppl@(\\d+)`; `number` makes
    the number of the match's groups."""
    frame, rows = part.groups[0].frame, [row for group in part.groups for row in group.positions]
    found = {str(name): match for name in frame if (match := re.fullmatch(pattern, str(name)))}
    there = frame.iloc[rows][list(found)].notna().any()
    return sorted((number(*match.groups()), name) for name, match in found.items() if there[name])


def over_number(drawn: Sequence[Drawn], at: At, log: bool) -> list[Series]:
    """For each drawn group that has any of the metrics, its means over the numbers; nothing for a single number."""
    if len(at) < 2:
        return []
    metrics, x = [metric for _, metric in at], [number for number, _ in at]
    made = [of_drawn(one, x, one.group.by_seeds(metrics), log) for one in drawn]
    return [one for one in made if len(one.x)]


def of_runs(group: Group, read: Callable[[Path], Content | None]) -> list[Content]:
    """What `read` finds in the folders of the group's first runs, without those whose file is missing or broken."""
    found = []
    for path in list(group.runs["path"])[:MOST_SEEDS]:
        try:
            content = read(Path(path))
        except (OSError, ValueError, KeyError):
            continue
        if content:
            found.append(content)
    return found


def table_of(path: Path, name: str) -> list[dict[str, str]]:
    """The rows of tables/<name>.csv of a run."""
    with (path / "tables" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
