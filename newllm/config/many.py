"""Thousands of configurations in seconds: Hydra composes once for each set of choices, values are set afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm.config.axes import nodes, unused, used_axes
from newllm.config.catalog import references
from newllm.config.compose import Composed, Plain, catalog_for, composed_choices, own_groups, with_values
from newllm.config.identity import resolved, sorted_keys
from newllm.config.overrides import parse


@dataclass(frozen=True)
class Job:
    """One run of many: its effective configuration, and which of the given axes have no effect on it."""

    lines: tuple[str, ...]
    config: dict[str, Any]
    unused: tuple[str, ...]


def compose_many(jobs: Sequence[Sequence[str]], *, config_dir: str | Path | None = None) -> list[Job]:
    """The runs that these lists of overrides describe, each equal to `effective(compose(overrides))`.

    An axis that a run does not use is left out of its overrides. Runs share the nodes in which they are equal. Raises
    ConfigError for names; values are judged where they are used.
    """
    catalog = catalog_for(config_dir)
    own = own_groups(catalog)
    by_choices: dict[tuple[str, ...], tuple[Composed, dict[str, Any]]] = {}
    found = []
    for lines in jobs:
        given = parse(lines, catalog)
        mark = tuple(given.choices())
        if mark not in by_choices:
            by_choices[mark] = composed_choices(given, config_dir), {}
        composed, known = by_choices[mark]
        run = with_values(composed, given).run
        idle = tuple(unused(run, given))
        kept = [line for line in given.of_run() if line.partition("=")[0] not in idle]
        config = {**_resolved(run, known), **own, "choices": composed.choices, "overrides": kept}
        found.append(Job(tuple(o.input_line or "" for o in given.parsed), dict(sorted(config.items())), idle))
    return found


def _resolved(run: Plain, known: dict[str, Any]) -> dict[str, Any]:
    """The nodes and used axes with their references filled in; `known` remembers nodes by what they are made of."""
    config: dict[str, Any] = {}
    for name in (*used_axes(run), *nodes(run)):
        behind = _behind(run, run[name])
        mark = repr((name, run[name], behind))
        if mark not in known:
            known[mark] = sorted_keys(resolved({**behind, name: run[name]})[name])
        config[name] = known[mark]
    return config


def _behind(run: Plain, value: Any) -> dict[str, Any]:
    """The root keys that a value refers to, directly or through others."""
    found: dict[str, Any] = {}
    fresh = references(value, parts=True)
    while fresh:
        found |= {name: run[name] for name in fresh if name in run}
        fresh = set().union(*(references(found[name], parts=True) for name in fresh if name in found)) - {*found}
    return found
