"""Groups: runs that differ in nothing but the seed. What differs between groups names them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import yaml

from newllm.analysis.labels import labels_by, name_groups
from newllm.analysis.metrics import scale_of
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


@dataclass(frozen=True, eq=False)
class Group:
    """Finished runs that are equal up to their seeds (or in the keys they were grouped by).

    label: what sets it apart from the other groups. settings: the choices, axes and options that differ among the
    groups, with this group's values. frame: the table of all runs; positions: the group's rows in it.
    """

    label: str
    settings: dict[str, Any]
    frame: pd.DataFrame = field(repr=False)
    positions: np.ndarray = field(repr=False)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The rows of the group's runs."""
        return self.frame.iloc[self.positions]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The effective configuration of the first run."""
        return dict(self.frame["config"].iloc[self.positions[0]])

    def values(self, metric: str) -> np.ndarray:
        """The metric of every run, NaN where a run has none."""
        if metric not in self.frame:
            return np.full(len(self.positions), np.nan)
        return np.asarray(self.frame[metric].to_numpy()[self.positions], dtype=float)

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed -> metric, of the runs that have it.

        A seed that ran several times counts once, with the mean of its runs (the geometric mean where the metric is
        compared by ratio).
        """
        values: dict[int, list[float]] = {}
        for seed, value in zip(self.frame["seed"].take(self.positions), self.values(metric), strict=True):
            if np.isfinite(value):
                values.setdefault(int(seed), []).append(float(value))
        return {seed: _mean(repeats, metric) for seed, repeats in sorted(values.items())}

    def by_seeds(self, metrics: Sequence[str]) -> pd.DataFrame:
        """A row per seed and a column per metric, NaN where a seed has none."""
        return pd.DataFrame({metric: self.by_seed(metric) for metric in metrics}, dtype=float)

    def mean(self, metric: str) -> float:
        """Arithmetic mean over the seeds that have the metric, NaN without any."""
        values = [*self.by_seed(metric).values()]
        return float(np.mean(values)) if values else float("nan")


def groups(frame: pd.DataFrame, by: Sequence[str] | None = None, without: Sequence[str] = ()) -> list[Group]:
    """The finished runs of `frame` (from `load_runs`) in groups, sorted by what differs.

    By default, runs that are equal but for seeds and for what never changes a number are together. by: group by
    these keys instead: choices (``attention``), axes (``kv_dim``) or settings (``optim.lr``); evaluations under other
    settings than those of training stay apart. without: settings (``data.samples``) that do not separate groups.

    Raises ConfigError for an unknown key in `by`.
    """
    done = np.flatnonzero((frame["state"] == "done").to_numpy())
    if not len(done):
        return []
    configs = frame["config"].iloc[done].tolist()
    if by:
        if any("evaluated" in config["choices"] for config in configs):
            by = list(dict.fromkeys([*by, "evaluated"]))
        _check_keys(configs, by)
        content_names = names_of_content(configs)
        values = [[_named_value_of(config, key, content_names) for key in by] for config in configs]
        members = [*places_of(tuple(map(canonical, row)) for row in values).values()]
        rows = [values[places[0]] for places in members]
        names = labels_by(by, rows, list(choices_of(configs[0])))
        settings = [dict(zip(by, row, strict=True)) for row in rows]
    else:
        # What fingerprints tell apart, metric by metric, makes no groups.
        if "scored" in frame and all(frame["scored"].iloc[done]):
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
    labelled = zip(names, settings, members, strict=True)
    return sorted((Group(name, own, frame, done[places]) for name, own, places in labelled), key=_sort_key)


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
