"""Groups: runs that differ in nothing but the seed. What differs between groups names them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from newllm.analysis.labels import labels_by, name_groups
from newllm.analysis.metrics import scale_of
from newllm.analysis.scored import fingerprint
from newllm.analysis.settings import (
    axes_of,
    canonical,
    choices_of,
    flatten,
    identity_of,
    names_of_content,
    nodes_of,
    places_of,
    settings_of,
    with_names,
)
from newllm.config.identity import content_mark, value_at
from newllm.errors import ConfigError
from newllm.suggest import nearest

Config = Mapping[str, Any]


LOST = ("failed", "unreadable")  # states of runs that have no results and will get none by themselves


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that are equal up to their seeds (or in the keys they were grouped by).

    A seed counts for a metric if all of its runs that should have measured the metric have a finite number. `missing`
    says which seeds do not count, and why. Then the group has no mean: it would be that of the survivors.

    label: what sets it apart from the other groups. settings: the choices, axes and options that differ among the
    groups, with this group's values. frame: the table of all runs. positions: the rows of the group's finished runs in
    it. lost: the rows of runs that failed or cannot be read, and that no finished run of the same signature replaces;
    for evaluations under other settings, of the runs that would have been evaluated. damaged: what was wrong with files
    of the runs that figures and tables would have read.
    """

    label: str
    settings: dict[str, Any]
    frame: pd.DataFrame = field(repr=False)
    positions: np.ndarray = field(repr=False)
    lost: np.ndarray = field(repr=False, default_factory=lambda: np.array([], dtype=int))
    damaged: dict[str, None] = field(repr=False, init=False, default_factory=dict)
    _missing: dict[str, dict[int, str]] = field(repr=False, init=False, default_factory=dict)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The rows of the group's finished runs."""
        return self.frame.iloc[self.positions]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The effective configuration of the first run."""
        return dict(self.frame["config"].iloc[[*self.positions, *self.lost][0]])

    @cached_property
    def path(self) -> str:
        """The folder of the first run."""
        return str(self.frame["path"].iloc[[*self.positions, *self.lost][0]])

    def values(self, metric: str) -> np.ndarray:
        """The metric of every finished run, NaN where a run has none."""
        if metric not in self.frame:
            return np.full(len(self.positions), np.nan)
        return np.asarray(self.frame[metric].to_numpy()[self.positions], dtype=float)

    def missing(self, metric: str) -> dict[int, str]:
        """Seed -> why it has no finite value: "diverged", "failed", "unreadable", "not finite", "not measured".

        A finished run without the metric counts as missing only if it has the evaluators that all runs with the metric
        have, and did not score other tokens. Empty for a metric that no finished run of the group has, if there is any.
        """
        if metric not in self._missing:
            self._missing[metric] = dict(sorted(self._find_missing(metric).items()))
        return self._missing[metric]

    def _find_missing(self, metric: str) -> dict[int, str]:
        values = self.values(metric)
        finite = np.isfinite(values)
        reasons: dict[int, str] = {}
        if not finite.all():
            null = np.isinf(values)
            if "not_finite" in self.frame:
                null |= [metric in names for names in self.frame["not_finite"].take(self.positions)]
            if not (finite | null).any():
                return {}
            runs = self.runs
            needed = set.intersection(*({*config["eval"]} for config in runs["config"][finite | null]))
            scored = [fingerprint(one, metric) for one in runs["scored"]] if "scored" in runs else [None] * len(runs)
            usual = {scored[place] for place in np.flatnonzero(finite)}
            for place in np.flatnonzero(~finite):
                run = runs.iloc[place]
                if scored[place] is not None and usual and scored[place] not in usual:
                    continue  # it scored other tokens
                if null[place]:
                    reasons[int(run["seed"])] = "not finite"
                elif needed <= {*run["config"]["eval"]}:
                    reasons[int(run["seed"])] = "not measured"
        for row in self.lost:
            reasons.setdefault(int(self.frame["seed"].iloc[row]), _why_lost(self.frame, row))
        return reasons

    def missing_words(self, metric: str) -> str:
        """`2 of 7 seeds diverged`, or `3 of 7 seeds missing: 2 diverged, 1 failed`; empty if every seed counts."""
        missing = self.missing(metric)
        every = len({*missing, *self.frame["seed"].take(self.positions[np.isfinite(self.values(metric))])})
        counts = Counter(missing.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        what = f"missing: {reasons}" if len(counts) > 1 else "".join(counts)
        return f"{len(missing)} of {every} seeds {what}" if missing else ""

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed -> metric, of the seeds that count.

        A seed that ran several times counts once, with the mean of its runs (the geometric mean where the metric is
        compared by ratio).
        """
        missing = self.missing(metric)
        values: dict[int, list[float]] = {}
        for seed, value in zip(self.frame["seed"].take(self.positions), self.values(metric), strict=True):
            if np.isfinite(value) and seed not in missing:
                values.setdefault(int(seed), []).append(float(value))
        return {seed: _mean(repeats, metric) for seed, repeats in sorted(values.items())}

    def by_seeds(self, metrics: Sequence[str]) -> pd.DataFrame:
        """A row per seed and a column per metric, for means: NaN where a seed has none, and where any is missing."""
        columns = {metric: {} if self.missing(metric) else self.by_seed(metric) for metric in metrics}
        return pd.DataFrame(columns, dtype=float)

    def mean(self, metric: str) -> float:
        """Arithmetic mean over the seeds. NaN without any, and where seeds are missing, unless all others have the same
        value, as the parameters do."""
        values = [*self.by_seed(metric).values()]
        if not values or (self.missing(metric) and (len(values) < 2 or min(values) != max(values))):
            return float("nan")
        return float(np.mean(values))


def _why_lost(frame: pd.DataFrame, row: int) -> str:
    if frame["state"].iloc[row] == "unreadable":
        return "unreadable"
    return "diverged" if "diverged" in str(frame["error"].iloc[row]) else "failed"


def groups(frame: pd.DataFrame, by: Sequence[str] | None = None, without: Sequence[str] = ()) -> list[Group]:
    """The runs of `frame` (from `load_runs`) in groups, sorted by what differs. Runs that are queued, running or
    interrupted are in none.

    By default, runs that are equal but for seeds and for what never changes a number are together. by: group by
    these keys instead: choices (``attention``), axes (``kv_dim``) or settings (``optim.lr``); evaluations under other
    settings than those of training stay apart. without: settings (``data.samples``) that do not separate groups.

    Raises ConfigError for an unknown key in `by`.
    """
    state = frame["state"].to_numpy()
    rows = np.flatnonzero((state == "done") | lost_runs(frame))
    if not len(rows):
        return []
    configs = frame["config"].iloc[rows].tolist()
    if by:
        if any("evaluated" in config["choices"] for config in configs):
            by = list(dict.fromkeys([*by, "evaluated"]))
        _check_keys(configs, by)
        content_names = names_of_content(configs)
        values = [[_named_value_of(config, key, content_names) for key in by] for config in configs]
        members = [*places_of(tuple(map(canonical, row)) for row in values).values()]
        firsts = [values[places[0]] for places in members]
        names = labels_by(by, firsts, list(choices_of(configs[0])))
        settings = [dict(zip(by, row, strict=True)) for row in firsts]
    else:
        # What fingerprints tell apart, metric by metric, makes no groups.
        if "scored" in frame and all(frame["scored"].iloc[rows[state[rows] == "done"]]):
            configs = [{**config, "eval": {}} for config in configs]
        nodes, axes = nodes_of(configs), {key.rpartition(".")[2] for key in without}
        identities = [
            (str(config["choices"].get("evaluated")), *identity_of(one, tuple(without)))
            for config, one in zip(configs, nodes, strict=True)
        ]
        members = [*places_of(identities).values()]
        first = [places[0] for places in members]
        without_axes = [{k: v for k, v in configs[place].items() if k not in axes} for place in first]
        content_names = names_of_content(configs)
        flats = [with_names(settings_of(nodes[place]), content_names) for place in first]
        flats = [{key: value for key, value in flat.items() if key not in without} for flat in flats]
        names, settings = name_groups(without_axes, flats)
    of_groups = [rows[places] for places in members]
    labelled = zip(names, settings, of_groups, _lost_rows(frame, of_groups), strict=True)
    found = [Group(name, own, frame, places[state[places] == "done"], lost) for name, own, places, lost in labelled]
    return sorted((group for group in found if len(group.positions) or len(group.lost)), key=_sort_key)


def lost_runs(frame: pd.DataFrame) -> np.ndarray:
    """Bool [rows]: the run failed or cannot be read, and its configuration tells the group that it belongs to."""
    known = frame["config"].astype(bool) & frame["seed"].notna()
    return np.asarray(frame["state"].isin(LOST) & known)


def _lost_rows(frame: pd.DataFrame, members: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For the rows of each group, those of lost runs: the group's own, and those of the runs that it evaluates."""
    state, signatures, paths = (frame[name].to_numpy() for name in ("state", "signature", "path"))
    lost: list[list[int]] = []
    for rows in members:
        finished = {signatures[row] for row in rows if state[row] == "done"}
        own = [int(row) for row in rows if state[row] != "done"]
        # A failed run may have been repeated elsewhere. Not so a diverged one: not every repeat of its seed is finite.
        lost.append([row for row in own if signatures[row] not in finished or _why_lost(frame, row) == "diverged"])
    if any(lost):
        number_of = {paths[row]: number for number, rows in enumerate(members) for row in rows}
        trained = [{number_of.get(str(Path(paths[row]).parent.parent), -1) for row in rows} for rows in members]
        own_lost = [*lost]
        for number, origins in enumerate(trained):
            lost[number] = lost[number] + [row for n in origins if n not in (-1, number) for row in own_lost[n]]
    return [np.array(rows, dtype=int) for rows in lost]


def value_of(config: Config, key: str) -> Any:
    """The value of a choice, an axis or a flat setting in an effective configuration; None if it has none."""
    choices = config["choices"]
    if key in choices:
        return choices_of(config).get(key, choices[key])
    if key in config and not isinstance(config[key], dict):
        return config[key]
    return value_at(config, key)


def _named_value_of(config: Config, key: str, content_names: Mapping[str, str]) -> Any:
    """The same, but the name of its content where the value is a path."""
    found = (config.get("content") or {}).get(key)
    return content_names[content_mark(found)] if found else value_of(config, key)


def is_typed(value: Any, typed: str) -> bool:
    """Is it the value that a user typed? As text, and as YAML reads it (except that 1e4 is a number)."""
    try:
        meant = float(typed)
    except ValueError:
        try:
            meant = yaml.safe_load(typed)
        except yaml.YAMLError:
            meant = typed  # type: ignore[assignment]
    return str(value) == typed or canonical(value) == canonical(meant)


def _check_keys(configs: Sequence[Config], by: Sequence[str]) -> None:
    """Raises ConfigError for a key that no configuration has."""
    known = {name for config in configs for name in [*config["choices"], *axes_of(config), "seed"]}
    for key in by:
        name = key.partition(".")[0]
        nodes = [config[name] for config in configs if isinstance(config.get(name), dict)]
        if key not in known and not any(key in flatten(node, name) for node in nodes):
            shown = dict.fromkeys(name for config in configs for name in [*choices_of(config), *axes_of(config)])
            every = dict.fromkeys(key for one in nodes_of(configs) for key in settings_of(one))
            close = nearest(key, [*shown, *every])
            hint = f"did you mean {close}?" if close else f"expected choices or axes, as {', '.join(shown)}."
            raise ConfigError(f"by={key} is not a choice, axis or setting of these runs; {hint}")


def _mean(values: Sequence[float], metric: str) -> float:
    if min(values) == max(values):
        return values[0]
    if scale_of(metric) == "log" and min(values) > 0:
        return float(np.exp(np.mean(np.log(values))))
    return float(np.mean(values))


def _sort_key(group: Group) -> list[tuple[int, float, str]]:
    """Numbers by size, then words, then missing values. A run comes before its evaluations under other settings."""

    def rank(value: Any) -> tuple[int, float, str]:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return (0, float(value), "")
        return (1, 0.0, str(value)) if value is not None else (2, 0.0, "")

    return [rank(value) for value in {**group.settings, "evaluated": group.settings.get("evaluated") or ""}.values()]
