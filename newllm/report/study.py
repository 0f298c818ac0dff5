"""What a report is about: the runs, in parts that compare, in groups, each against a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from newllm.analysis.comparable import comparable
from newllm.analysis.comparison import Comparison, compare
from newllm.analysis.frame import load_runs
from newllm.analysis.groups import Group, find, groups, value_of
from newllm.analysis.metrics import lower_is_better
from newllm.config.catalog import Catalog, shipped
from newllm.errors import ConfigError
from newllm.report.options import Options, Request
from newllm.report.where import where
from newllm.suggest import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

MOST_PARTS = 4  # of which figures are drawn
COLOUR_CYCLE = 224  # a multiple of all cycles of colours, dashes and marks, so that each part begins with the first


@dataclass(frozen=True)
class Drawn:
    """A group that is drawn: its index is its colour, mark and name in all figures."""

    index: int
    group: Group


@dataclass(frozen=True)
class Part:
    """Groups that compare with each other. `mark` ends the names of its files, "" for the only part."""

    number: int
    title: str
    groups: Sequence[Group]
    baseline: Group | None
    comparisons: Sequence[Comparison]
    options: Options

    @property
    def mark(self) -> str:
        return f"-{self.number}" if self.title else ""

    @property
    def first_index(self) -> int:
        """Of the colours: the parts' figures are switched on and off apart from each other."""
        return COLOUR_CYCLE * max(0, self.number - 1)

    def named(self, title: str) -> str:
        return f"{title} ({self.title})" if self.title else title

    @cached_property
    def drawn(self) -> list[Drawn]:
        """The baseline and the best groups, as many as may be drawn, in the order of the groups."""
        primary = self.options.compare[0] if self.options.compare else self.options.metrics[0]
        sign = -1 if lower_is_better(primary) is False else 1
        mean = [mean_of(group, primary) * sign for group in self.groups]
        best = [self.groups[i] for i in np.argsort([m if np.isfinite(m) else np.inf for m in mean], kind="stable")]
        chosen = ([self.baseline] if self.baseline else []) + [one for one in best if one is not self.baseline]
        kept = chosen[: self.options.curves]
        ordered = [group for group in self.groups if any(group is one for one in kept)]
        return [Drawn(self.first_index + i, group) for i, group in enumerate(ordered)]


@dataclass(frozen=True)
class Study:
    """All runs read; `done` are those of the tables; `reason` says why there is more than one part."""

    request: Request
    frame: "pd.DataFrame"
    done: "pd.DataFrame"
    parts: Sequence[Part]
    reason: str
    against: "pd.DataFrame | None"

    @property
    def options(self) -> Options:
        return self.request.options

    @property
    def drawn_parts(self) -> Sequence[Part]:
        """The largest parts, which have figures."""
        return self.parts[:MOST_PARTS]

    @property
    def unfinished(self) -> "pd.DataFrame":
        return self.frame[self.frame["state"] != "done"]


def study(request: Request) -> Study:
    """Read, part, group and compare.

    Raises ConfigError: nothing finished, a metric that no run has, an unknown baseline or grouping key.
    """
    options = request.options
    frame = where(load_runs(request.folders), options.where)
    done = frame[frame["state"] == "done"]
    if done.empty:
        raise ConfigError(_nothing_done(request, frame))
    _known_metrics(options, done)
    options = replace(options, metrics=_there(options.metrics, done), compare=_there(options.compare, done))
    split = comparable(frame)
    parts = []
    for number, runs in enumerate(split, 1):
        among = groups(runs.runs, by=options.by)
        baseline = _baseline(among, options, alone=len(split) == 1)
        found = _compare(among, baseline, request, options)
        parts.append(Part(number, runs.title, among, baseline, found, options))
    if options.baseline and not any(part.baseline for part in parts):
        find([group for part in parts for group in part.groups], _typed(options.baseline))  # says what there is
    against = load_runs(options.against) if options.against else None
    return Study(replace(request, options=options), frame, done, parts, split[0].reason, against)


def by_seed(group: Group, metrics: Sequence[str]) -> np.ndarray:
    """The metrics as rows [seeds, metrics], NaN where a seed has none; a seed that ran twice counts once."""
    found = [group.by_seed(metric) for metric in metrics]
    seeds = dict.fromkeys(seed for one in found for seed in one)
    rows = [[one.get(seed, np.nan) for one in found] for seed in seeds]
    return np.array(rows, dtype=float).reshape(len(seeds), len(metrics))


def mean_of(group: Group, metric: str) -> float:
    """Arithmetic mean over the seeds that have the metric, NaN without any."""
    values = by_seed(group, [metric])
    return float(values.mean()) if len(values) else float("nan")


def _compare(
    among: Sequence[Group], baseline: Group | None, request: Request, options: Options
) -> Sequence[Comparison]:
    if baseline is None or not options.compare:
        return []
    return compare(
        among, baseline, options.compare, request.rule, confidence=options.confidence, interval=options.interval
    )


def _baseline(among: Sequence[Group], options: Options, alone: bool) -> Group | None:
    """The group asked for, else the nearest to the default configuration; None for a single group.

    A part of several may be without the baseline; the only one may not.
    """
    if options.baseline is None:
        return _nearest_to_defaults(among) if len(among) > 1 else None
    try:
        return find(among, _typed(options.baseline))
    except ConfigError:
        if alone:
            raise
        return None


def _nearest_to_defaults(among: Sequence[Group]) -> Group:
    catalog = Catalog((shipped(),))
    defaults = {**catalog.axes, **catalog.defaults}

    def likeness(group: Group) -> tuple[bool, int, int]:
        known = [key for key in group.settings if key in defaults]
        usual = sum(value_of(group.config, key) in (defaults[key], None) for key in known)
        return "evaluated" not in group.config["choices"], usual, len(group.positions)

    return max(among, key=likeness)


def _typed(baseline: str | list[str]) -> str:
    return baseline if isinstance(baseline, str) else f"[{','.join(baseline)}]"


def _known_metrics(options: Options, done: "pd.DataFrame") -> None:
    """A metric of the usual columns may be absent, since its evaluator was not chosen; one typed wrongly may not."""
    known = [str(name) for name in done if "/" in str(name) and done[name].notna().any()]
    usual = {"val/ppl", "val/bits_per_byte", "reversal/backward_ppl", "kv_cache/bytes_per_token", "params/total"}
    for name in [*options.metrics, *options.compare]:
        if name not in known and name not in usual:
            raise ConfigError(f"{name} is no metric of these runs; {did_you_mean(name, known)}.")


def _there(metrics: Sequence[str], done: "pd.DataFrame") -> list[str]:
    return [name for name in metrics if name in done and done[name].notna().any()]


def _nothing_done(request: Request, frame: "pd.DataFrame") -> str:
    places = ", ".join(request.folders)
    if frame.empty:
        chosen = f" with {', '.join(request.options.where)}" if request.options.where else ""
        return f"{places}: no run{chosen} is there; expected run directories, as newllm train leaves in outputs/runs."
    counts = ", ".join(f"{count} {state}" for state, count in frame["state"].value_counts().items())
    return (
        f"{places}: no run is done ({counts}), so there is nothing to report; newllm status {request.folders[0]} "
        "shows them, and the command that started them goes on."
    )
