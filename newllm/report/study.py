"""What a report is about: runs, split into parts that compare, and into groups that are compared with a baseline."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from newllm.analysis.comparable import comparable
from newllm.analysis.comparison import Comparison, compare
from newllm.analysis.frame import load_runs, metric_names
from newllm.analysis.metrics import lower_is_better
from newllm.analysis.run_groups import Group, find, groups, is_typed, value_of
from newllm.config.catalog import Catalog, shipped
from newllm.errors import ConfigError
from newllm.report.figures import Drawing
from newllm.report.options import Options, defaults
from newllm.report.tables import Table
from newllm.suggest import did_you_mean

MOST_PARTS = 4  # the number of parts that have figures
COLOUR_CYCLE = 224  # a multiple of all cycles of colours, dashes and marks, so that each part begins with the first


@dataclass(frozen=True)
class Drawn:
    """A group that is drawn: its index is its colour, mark and name in all figures."""

    index: int
    group: Group

    @property
    def label(self) -> str:
        return self.group.label


@dataclass(frozen=True)
class Part:
    """Groups that compare with each other. `mark` ends the names of its files, "" for the only part."""

    number: int
    title: str
    groups: Sequence[Group]
    baseline: Group | None
    options: Options

    @property
    def metric(self) -> str:
        return self.options.main_metric

    @property
    def mark(self) -> str:
        return f"-{self.number}" if self.title else ""

    @property
    def first_index(self) -> int:
        """Where the part's colours begin: the groups of each part are shown and hidden separately."""
        return COLOUR_CYCLE * max(0, self.number - 1)

    def named(self, title: str) -> str:
        return f"{title} ({self.title})" if self.title else title

    def compare(self, metrics: Sequence[str]) -> list[Comparison]:
        """All groups with the baseline on these metrics, corrected together; nothing without a baseline."""
        if self.baseline is None:
            return []
        done, options = self._compared, self.options
        if (*metrics,) not in done:
            how = (options.rule, options.confidence, options.interval)
            done[(*metrics,)] = compare(self.groups, self.baseline, metrics, *how)
        return done[(*metrics,)]

    @cached_property
    def _compared(self) -> dict[tuple[str, ...], list[Comparison]]:
        return {}

    @cached_property
    def drawn(self) -> list[Drawn]:
        """The baseline and the best groups, as many as may be drawn, in the order of the groups."""
        sign = -1 if lower_is_better(self.metric) is False else 1
        mean = [group.mean(self.metric) * sign for group in self.groups]
        best = np.argsort([m if np.isfinite(m) else np.inf for m in mean], kind="stable").tolist()
        best.sort(key=lambda place: self.groups[place] is not self.baseline)  # the baseline before all others
        return [Drawn(self.first_index + i, self.groups[n]) for i, n in enumerate(sorted(best[: self.options.curves]))]


Figures = Callable[[Part], Iterable[Drawing]]


@dataclass(frozen=True)
class Section:
    """A part of the report: sentences, tables and figures under one heading. `name` is its anchor on the page."""

    name: str
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()


@dataclass(frozen=True)
class Study:
    """All runs that were read. done: those in the tables; reason: why there is more than one part; figures: are any
    wanted?"""

    options: Options
    frame: pd.DataFrame
    done: pd.DataFrame
    parts: Sequence[Part]
    reason: str
    figures: bool

    @property
    def drawn_parts(self) -> Sequence[Part]:
        """The largest parts, which have figures."""
        return self.parts[:MOST_PARTS]

    def draw(self, *figures: Figures) -> list[Drawing]:
        """These figures of every part that has figures, none if no figures are wanted."""
        return [one for part in self.drawn_parts for draw in figures for one in draw(part)] if self.figures else []

    @property
    def left_out(self) -> list[str]:
        """A sentence on the groups that are not drawn, if there are any."""
        total, drawn = sum(len(part.groups) for part in self.parts), sum(len(part.drawn) for part in self.drawn_parts)
        if drawn == total or not self.figures:
            return []
        if len(self.parts) > len(self.drawn_parts):
            return [f"The figures show groups of the {len(self.drawn_parts)} largest of {len(self.parts)} tables."]
        which = f"the baseline and the best by {self.options.main_metric}"
        return [f"The figures show {drawn} of {total:,} groups: {which}; curves=N shows more."]


def study(options: Options) -> Study:
    """Reads, splits, groups and compares the runs.

    Raises ConfigError: nothing finished, a metric that no run has, an unknown baseline or grouping key.
    """
    frame = where(load_runs(options.folders), options.where)
    done = frame[frame["state"] == "done"]
    if done.empty:
        raise ConfigError(_nothing_done(options, frame))
    options = _with_known_metrics(options, done)
    split = comparable(frame)
    parts = []
    for number, runs in enumerate(split, 1):
        among = groups(runs.runs, by=options.by)
        parts.append(Part(number, runs.title, among, _baseline(among, options, alone=len(split) == 1), options))
    if options.baseline and not any(part.baseline for part in parts):
        find([group for part in parts for group in part.groups], options.baseline)  # raises, saying what there is
    figures = bool({"html", "svg", "png"} & {*options.formats})
    return Study(options, frame, done, parts, split[0].reason, figures)


def where(frame: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The rows that fulfil every condition ``key=value`` or ``key=value|value``; unreadable runs fulfil none.

    A key is a choice, an axis or a setting. Raises ConfigError for a condition without ``=`` and an unknown key.
    """
    for condition in conditions:
        key, equals, typed = condition.partition("=")
        if not equals:
            raise ConfigError(f"where={condition}: expected key=value, as in where=[attention=mha,seed=1|2].")
        values = [value_of(config, key) if config else None for config in frame["config"]]
        if not frame.empty and all(value is None for value in values):
            names = [str(name) for name in frame if "/" not in str(name)]
            raise ConfigError(f"where={condition}: no run has {key}; {did_you_mean(key, names)}.")
        frame = frame[[any(is_typed(value, word) for word in typed.split("|")) for value in values]]
    return frame.reset_index(drop=True)


def _baseline(among: Sequence[Group], options: Options, alone: bool) -> Group | None:
    """The group asked for, else the nearest to the default configuration; None for a single group.

    A part of several may be without the baseline; the only one may not.
    """
    if options.baseline is None:
        return _nearest_to_defaults(among) if len(among) > 1 else None
    try:
        return find(among, options.baseline)
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


def _with_known_metrics(options: Options, done: pd.DataFrame) -> Options:
    """The options with the metrics that there are: one of the usual columns may be missing, since its evaluator was
    not chosen. Raises ConfigError for any other name."""
    known, usual = [name for name in metric_names(done) if done[name].notna().any()], defaults()
    metrics, compared = ([name for name in names if name in known] for names in (options.metrics, options.compare))
    for name in [*options.metrics, *options.compare]:
        if name not in known and (name not in [*usual["metrics"], *usual["compare"]] or not metrics):
            raise ConfigError(f"{name} is no metric of these runs; {did_you_mean(name, known)}.")
    return replace(options, metrics=metrics, compare=compared)


def _nothing_done(options: Options, frame: pd.DataFrame) -> str:
    places = ", ".join(options.folders)
    if frame.empty:
        chosen = f" with {', '.join(options.where)}" if options.where else ""
        return f"{places}: no run{chosen} is there; expected run directories, as newllm train leaves in outputs/runs."
    counts = ", ".join(f"{count} {state}" for state, count in frame["state"].value_counts().items())
    return (
        f"{places}: no run is done ({counts}), so there is nothing to report; newllm status {options.folders[0]} "
        "shows them, and the command that started them goes on."
    )
