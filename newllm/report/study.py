"""What a report is about: runs, split into parts that compare, and into groups that are compared with a baseline."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from newllm.analysis.baselines import Baseline, choose_baseline, unequal_groups
from newllm.analysis.comparable import split_comparable
from newllm.analysis.comparison import Comparison, family_in_words, judge, measure_all
from newllm.analysis.frame import known_metrics, load_runs, require_metric, states_in_words
from newllm.analysis.labels import SEPARATOR
from newllm.analysis.metrics import lower_is_better
from newllm.analysis.run_groups import Group, groups, is_typed, value_of
from newllm.analysis.scored import OtherTokens, split_scored
from newllm.config.catalog import report_defaults
from newllm.errors import ConfigError
from newllm.report.figures import Drawing, Panel, Series, plot
from newllm.report.options import Options
from newllm.report.tables import Table
from newllm.suggest import did_you_mean

AT_LENGTHS = r"(extrapolation/(ppl|tail_ppl|sliding_ppl)|(passkey|distance)/accuracy|ruler/[\w-]+)@\d+"  # compared too
MOST_PARTS = 4  # the number of parts that have figures
COLOUR_CYCLE = 224  # a multiple of all cycles of colours, dashes and marks, so that each part begins with the first


@dataclass(frozen=True)
class DrawnGroup:
    """A group in the figures. Its index is its colour and mark in all of them. missing: which of its seeds do not count
    for the main metric, as `2 of 7 seeds diverged`."""

    index: int
    group: Group
    missing: str = ""

    @property
    def label(self) -> str:
        return f"{self.group.label} ({self.missing})" if self.missing else self.group.label

    def series(self, values: Any, log: bool = False) -> Series:
        """The means over seeds of `values`, a table with a row per seed and a column per x."""
        return Series.over_seeds(self.index, self.label, values, log)


@dataclass(frozen=True)
class Part:
    """Groups that compare with each other, and with which of them each is compared. `mark` ends the names of its files;
    it is empty for the only part.

    comparisons, evaluations: of runs as trained, and of evaluations under other settings, on all metrics that the
    report compares. whole: False for numbers of other tokens than those of most runs, which have tables but no figures.
    """

    number: int
    title: str
    groups: Sequence[Group]
    baseline: Baseline
    options: Options
    whole: bool = True
    comparisons: Sequence[Comparison] = ()
    evaluations: Sequence[Comparison] = ()

    @property
    def frame(self) -> pd.DataFrame:
        """The runs of all parts."""
        return self.groups[0].frame

    @property
    def metric(self) -> str:
        return self.options.main_metric

    @property
    def mark(self) -> str:
        return f"-{self.number}" if self.title else ""

    @property
    def first_index(self) -> int:
        """Where the part's colours begin, since the page shows and hides the groups of each part separately."""
        return COLOUR_CYCLE * max(0, self.number - 1)

    def named(self, title: str) -> str:
        return f"{title} ({self.title})" if self.title else title

    def figure(self, name: str, title: str, panels: Iterable[Panel], caption: str, **size: float) -> list[Drawing]:
        """The figure of the panels that have series; none without such panels."""
        filled = [panel for panel in panels if panel.series]
        return [self.drawing(name, title, plot(filled, **size), caption)] if filled else []

    def drawing(self, name: str, title: str, figure: Figure, caption: str) -> Drawing:
        return Drawing.of(f"{name}{self.mark}", self.named(title), figure, caption)

    def compared(self, metrics: Sequence[str]) -> list[Comparison]:
        """The groups with their baselines on these metrics."""
        every = [*self.comparisons, *self.evaluations]
        return [one for name in metrics for one in every if one.metric == name]

    @cached_property
    def drawn(self) -> list[DrawnGroup]:
        """The baselines and the best groups, as many as may be drawn, in the order of the groups."""
        sign = -1 if lower_is_better(self.metric) is False else 1
        mean = np.array([group.mean(self.metric) * sign for group in self.groups])
        best = np.argsort(np.where(np.isfinite(mean), mean, np.inf), kind="stable").tolist()
        best = [place for place in best if len(self.groups[place].positions)]  # nothing to draw of failed runs
        best.sort(key=lambda place: self.groups[place].label not in self.baseline.labels)  # baselines before all others
        chosen = sorted(best[: self.options.curves])
        drawn = [self.groups[place] for place in chosen]
        return [DrawnGroup(self.first_index + i, one, one.missing_words(self.metric)) for i, one in enumerate(drawn)]

    @cached_property
    def trained_length(self) -> float | None:
        """The length of the rows that all groups trained on; None where they differ."""
        lengths = {group.config["data"].get("seq_len") for group in self.groups}
        return float(lengths.pop()) if len(lengths) == 1 and None not in lengths else None


DrawFigures = Callable[[Part], Iterable[Drawing]]


@dataclass(frozen=True)
class Section:
    """Sentences, tables and figures under one heading. `name` is its anchor on the page."""

    name: str
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()


@dataclass(frozen=True)
class Study:
    """What a report is about.

    frame: all runs; done: the finished ones. reason: why there is more than one part. figures: whether to draw any.
    """

    options: Options
    frame: pd.DataFrame
    done: pd.DataFrame
    parts: Sequence[Part]
    reason: str
    figures: bool

    def family_in_words(self, part: Part, metrics: Sequence[str]) -> str:
        """What the intervals and corrected p-values of a table of these comparisons hold for."""
        return self._report_in_words if self.options.family == "report" else self._in_words([part], metrics)

    @cached_property
    def _report_in_words(self) -> str:
        return self._in_words(self.parts, None)

    def _in_words(self, parts: Sequence[Part], metrics: Sequence[str] | None) -> str:
        sentences = []
        for name, what in (("comparisons", "comparisons"), ("evaluations", "comparisons of evaluations")):
            every = [one for part in parts for one in getattr(part, name) if metrics is None or one.metric in metrics]
            what = f"{what} of this {self.options.family}"
            sentences.append(family_in_words(every, self.options.rule, self.options.confidence, what))
        return " ".join(filter(None, sentences))

    @property
    def drawn_parts(self) -> Sequence[Part]:
        """The largest parts, which have figures."""
        return [part for part in self.parts if part.whole][:MOST_PARTS]

    def figure_section(self, name: str, title: str, *draw: DrawFigures, tables: Sequence[Table] = ()) -> Section:
        """A section with these figures of every part that has figures, and a sentence on groups that are not drawn."""
        parts = self.drawn_parts if self.figures else ()
        drawings = [drawing for part in parts for draw_figures in draw for drawing in draw_figures(part)]
        return Section(name, title, self._groups_not_drawn() if drawings else (), tables, drawings)

    def _groups_not_drawn(self) -> list[str]:
        parts = [part for part in self.parts if part.whole]
        total, drawn = sum(len(part.groups) for part in parts), sum(len(part.drawn) for part in self.drawn_parts)
        if drawn == total:
            return []
        if len(parts) > len(self.drawn_parts):
            return [f"The figures show groups of the {len(self.drawn_parts)} largest of {len(parts)} tables."]
        which = f"the baseline and the best by {self.options.main_metric}"
        return [f"The figures show {drawn} of {total:,} groups: {which}; curves=N shows more."]


def read_study(options: Options) -> Study:
    """Reads the runs, splits them into parts that compare, groups them, and picks the baselines.

    Raises ConfigError without a finished run, and for an unknown metric, baseline or grouping key.
    """
    frame = where(load_runs(options.folders, evaluations=True), options.where)
    done = frame[frame["state"] == "done"]
    if done.empty:
        raise ConfigError(_nothing_done(options, frame))
    options = _with_known_metrics(options, done)
    split = split_comparable(frame)
    parts: list[Part] = []
    reasons, errors = [split[0].reason] if split[0].reason else [], []
    for runs in split:
        frame_of_most, others = split_scored(runs.runs)
        members = groups(frame_of_most, by=options.by)
        tables = [(runs.title, members)]
        for other in others:
            tables.append((SEPARATOR.join(filter(None, (runs.title, other.title))), _restricted(members, other)))
            reasons.append(other.words)
        for title, some in tables:
            try:
                baseline = choose_baseline(some, options.baseline)
                if options.by:
                    notes = [*baseline.notes, *unequal_groups(baseline.pairs, options.by)]
                    baseline = replace(baseline, notes=notes)
            except ConfigError as error:  # one of several parts may be without the baseline
                errors.append(error)
                baseline = Baseline(notes=[f"{title}: {error}"])
            whole = some is members
            parts.append(Part(len(parts) + 1, title, some, baseline, options, whole))
    if len(errors) == len(parts):
        raise errors[0]
    figures = bool({"html", "svg", "png"} & {*options.formats})
    return Study(options, frame, done, _compared(parts, options), " ".join(reasons), figures)


def _restricted(groups: Sequence[Group], other: OtherTokens) -> list[Group]:
    """The groups with the numbers of other tokens alone, under the same labels."""
    own = {group: group.positions[np.isin(group.positions, other.places)] for group in groups}
    return [replace(group, frame=other.frame, positions=kept) for group, kept in own.items() if len(kept)]


def _compared(parts: Sequence[Part], options: Options) -> list[Part]:
    """The parts with their comparisons.

    Those of runs as trained are one family, and those of evaluations another, since they are of the same trained runs;
    with family=table each table has its own.
    """
    families: dict[Any, list[tuple[int, Comparison]]] = {}  # each comparison with the number of its part
    for part in parts:
        lengths = [str(name) for name in part.frame if re.fullmatch(AT_LENGTHS, str(name))]
        for kind, pairs in (("comparisons", part.baseline.pairs), ("evaluations", part.baseline.evaluations)):
            for one in measure_all(pairs, list(dict.fromkeys([*options.compare, *lengths]))):
                table = (part.number, one.metric in options.compare) if options.family == "table" else ()
                families.setdefault((kind, table), []).append((part.number, one))
    judged: dict[tuple[int, str], list[Comparison]] = {}
    for (kind, _), members in families.items():
        comparisons = judge([one for _, one in members], options.rule, options.confidence, options.interval)
        for (number, _), one in zip(members, comparisons, strict=True):
            judged.setdefault((number, kind), []).append(one)
    return [
        replace(
            part,
            comparisons=judged.get((part.number, "comparisons"), ()),
            evaluations=judged.get((part.number, "evaluations"), ()),
        )
        for part in parts
    ]


def where(frame: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The runs that meet every condition ``key=value`` or ``key=value|value``; unreadable runs meet none.

    A key is a choice, an axis or a setting. Raises ConfigError for a condition without ``=`` and for an unknown key.
    """
    for condition in conditions:
        key, equals, typed = condition.partition("=")
        if not equals:
            raise ConfigError(f"where={condition}: expected key=value, as in 'where=[attention=mha,seed=1|2]'.")
        values = [value_of(config, key) if config else None for config in frame["config"]]
        if not frame.empty and all(value is None for value in values):
            names = [str(name) for name in frame if "/" not in str(name)]
            raise ConfigError(f"where={condition}: no run has {key}; {did_you_mean(key, names)}.")
        frame = frame[[any(is_typed(value, word) for word in typed.split("|")) for value in values]]
    return frame.reset_index(drop=True)


def _with_known_metrics(options: Options, done: pd.DataFrame) -> Options:
    """The options without the default metrics that no run has, since their evaluators were not chosen.

    Raises ConfigError for any other metric that no run has, and where none is left.
    """
    known = known_metrics(done)
    optional = [*report_defaults()["metrics"], *report_defaults()["compare"]]
    metrics, compared = ([name for name in names if name in known] for names in (options.metrics, options.compare))
    for name in [*options.metrics, *options.compare]:
        if name not in known and (name not in optional or not metrics):
            require_metric(done, name)
    return replace(options, metrics=metrics, compare=compared)


def _nothing_done(options: Options, frame: pd.DataFrame) -> str:
    places = ", ".join(options.folders)
    if frame.empty:
        chosen = f" with {', '.join(options.where)}" if options.where else ""
        return f"{places}: no runs{chosen} found; expected run directories, as newllm train writes to outputs/runs."
    return (
        f"{places}: no run is done ({states_in_words(frame)}), so there is nothing to report; newllm status "
        f"{options.folders[0]} shows the runs, and the command that started them resumes them."
    )
