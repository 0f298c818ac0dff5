"""What figures are drawn from: metrics with a number in their name, and files of the runs."""

import re
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TypeVar

import numpy as np
import pandas as pd

from newllm.analysis.run_groups import Group
from newllm.report.figures import Series
from newllm.report.study import DrawnGroup, Part
from newllm.store.intact import Damaged
from newllm.store.run_directory import RunDirectory

BAND = "Mean over seeds; the band is ± one sample standard deviation."
GEOMETRIC = "Geometric mean over seeds; the band is ± one sample standard deviation of ln perplexity."
BARS = "Mean over seeds; bars are ± one sample standard deviation."

MOST_SEEDS = 24  # runs of one group whose files are read

Numbered = list[tuple[float, str]]  # number, metric; by rising number
Content = TypeVar("Content")


def numbered_metrics(part: Part, pattern: str, number: Callable[..., float] = float) -> Numbered:
    """The metrics of the part's runs whose whole name matches `pattern`, as `extrapolation/ppl@(\\d+)`.

    number: makes the number from the groups of the match.
    """
    matches = {str(name): match for name in part.frame if (match := re.fullmatch(pattern, str(name)))}
    measured = part.frame[list(matches)].notna().any()
    return sorted((number(*match.groups()), name) for name, match in matches.items() if measured[name])


def over_numbers(groups: Sequence[DrawnGroup], metrics: Numbered, log: bool = False) -> list[Series]:
    """For each group that has any of the metrics, its means over their numbers; empty for a single number."""
    if len(metrics) < 2:
        return []
    columns = {metric: number for number, metric in metrics}
    series = [one.series(one.group.by_seeds(list(columns)).rename(columns=columns), log) for one in groups]
    return [one for one in series if len(one.x)]


def read_runs(group: Group, read: Callable[[RunDirectory], Content], metric: str = "") -> list[Content]:
    """What `read` returns for the folders of the group's first runs, without those whose file is missing or broken.

    Of a damaged file, `group.damaged` has a sentence.
    metric: only runs that have this metric, if any run has it (of those that scored other tokens it is left out).
    """
    paths = group.runs["path"].to_numpy()
    if metric in group.frame:
        paths = paths[np.isfinite(group.values(metric))]
    contents = []
    for path in paths[:MOST_SEEDS]:
        try:
            contents.append(read(RunDirectory(path)))
        except Damaged as error:
            group.damaged[str(error)] = None
        except (OSError, ValueError, KeyError):
            continue
    return contents


def read_tables(group: Group, name: str, columns: Sequence[str], metric: str = "") -> list[pd.DataFrame]:
    """These columns of tables/<name>.csv of the group's first runs (that have `metric`), of the tables that have them
    all and at least one row."""

    def read(run: RunDirectory) -> pd.DataFrame:
        content = run.written(f"tables/{name}.csv")
        return pd.read_csv(BytesIO(content or b""), usecols=columns, float_precision="round_trip")

    return [table for table in read_runs(group, read, metric) if len(table)]
