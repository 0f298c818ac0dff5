"""Which tokens a metric scored. Numbers are compared and averaged only where these are the same.

A run says so in results.json: ``scored/METRIC`` is a fingerprint of the tokens that the metric scored, and
``scored/EVALUATOR`` or ``scored/EVALUATOR/PART`` is that of several metrics. Metrics that score no text (times, sizes)
have none.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from newllm.analysis.frame import metric_names
from newllm.analysis.labels import value_text
from newllm.analysis.settings import differing, flatten, places_of


@dataclass(frozen=True)
class OtherTokens:
    """Numbers that were measured on other tokens than those of most runs.

    title: the options that differ, with their values here; or the fingerprint. usual: the values of these options in
    most runs, "" if none differs. metrics: names. places: rows of `frame`, which has these numbers alone.
    """

    title: str
    usual: str
    metrics: list[str]
    places: np.ndarray
    frame: pd.DataFrame

    @property
    def words(self) -> str:
        """A sentence for a report."""
        more = f" and {len(self.metrics) - 1} other metrics" if len(self.metrics) > 1 else ""
        usual = f" ({self.title}, in most runs {self.usual})" if self.usual else ""
        runs = f"{len(self.places)} run{'s' * (len(self.places) > 1)}"
        scored = f"{self.metrics[0]}{more} of {runs} scored other tokens than most runs"
        return f"{scored}{usual}, so these numbers have tables of their own."


def fingerprint(scored: Mapping[str, str], metric: str) -> str | None:
    """The fingerprint of a metric among those of a run (the column `scored` of `load_runs`).

    An entry for the metric itself comes first; then the longest entry EVALUATOR/PART whose words are all in the
    metric's name (`extrapolation/ppl` for `extrapolation/ppl@64`); then the entry of the evaluator.
    """
    if metric in scored:
        return scored[metric]
    evaluator, _, rest = metric.partition("/")
    words = {evaluator, *re.split("[/@]", rest)}
    inside = [name for name in scored if name.startswith(f"{evaluator}/") and words >= {*re.split("[/@]", name)}]
    return scored[max(inside, key=len)] if inside else scored.get(evaluator)


def split_scored(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[OtherTokens]]:
    """The numbers of each metric that are of the same tokens, those of most trained runs first; then the others.

    frame: finished runs of `load_runs`. The first table has all rows, with NaN for the numbers of other tokens.
    """
    names, others = metric_names(frame), _others(frame)
    most, result = frame.copy() if others else frame, []
    for places, (first, metrics) in others.items():
        rows = np.array(places)
        title, usual = _settings(frame, rows[0], first), _settings(frame, first, rows[0])
        title = title or f"other tokens {fingerprint(frame['scored'].iloc[rows[0]], metrics[0]) or 'unknown'}"
        columns = [frame.columns.get_loc(name) for name in metrics]
        alone = frame.assign(**dict.fromkeys(names, np.nan))
        alone.iloc[rows, columns] = frame.iloc[rows, columns]
        most.iloc[rows, columns] = np.nan
        result.append(OtherTokens(title, usual, metrics, rows, alone))
    return most, result


def _others(frame: pd.DataFrame) -> dict[tuple[int, ...], tuple[int, list[str]]]:
    """Rows that scored other tokens than most trained runs -> the first of those runs, and the metrics."""
    distinct = places_of(tuple(sorted(scored.items())) for scored in frame["scored"])
    kinds: list[tuple[dict[str, str], list[int]]] = [(dict(items), rows) for items, rows in distinct.items()]  # type: ignore[call-overload]
    evaluated = np.array(["evaluated" in config["choices"] for config in frame["config"]])
    known = {metric: frame[metric].notna().to_numpy() for metric in metric_names(frame)}
    others: dict[tuple[int, ...], tuple[int, list[str]]] = {}
    for metric, has in known.items() if len(kinds) > 1 else ():
        sets: dict[str | None, list[int]] = {}
        for scored, rows in kinds:
            sets.setdefault(fingerprint(scored, metric), []).extend(row for row in rows if has[row])
        most, *rest = sorted(sets.values(), key=lambda rows: (-np.sum(~evaluated[rows]), -len(rows)))
        for rows in filter(None, rest):
            others.setdefault(tuple(sorted(rows)), (most[0], []))[1].append(metric)
    for metric, has in known.items():  # other lengths, which only these runs measured
        for places, (_, metrics) in others.items():
            families = {name.rpartition("@")[0] for name in metrics} - {""}
            if metric.rpartition("@")[0] in families and metric not in metrics and {*np.flatnonzero(has)} <= {*places}:
                metrics.append(metric)
    return others


def _settings(frame: pd.DataFrame, here: int, there: int) -> str:
    """What a run has in the options of evaluators and data in which another one differs, "" if it does in none."""
    ours, theirs = (
        flatten({key: frame["config"].iloc[row].get(key) or {} for key in ("eval", "data")}) for row in (here, there)
    )
    return ", ".join(f"{key} {value_text(ours[key])}" for key in differing([ours, theirs]))
