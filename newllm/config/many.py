"""Composes thousands of configurations in seconds: Hydra runs once per set of choices, values are set afterwards."""

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
    """One run of many: its overrides, its effective configuration, and the given axes that have no effect on it."""

    lines: tuple[str, ...]
    config: dict[str, Any]
    unused: tuple[str, ...]


def compose_many(jobs: Sequence[Sequence[str]], *, config_dir: str | Path | None = None) -> list[Job]:
    """The runs that these lists of overrides describe, each equal to `effective(compose(overrides))`.

    An axis that a run does not use is left out of its overrides. Runs share equal nodes. Raises ConfigError for wrong
    names; values are not checked here.
    """
    catalog = catalog_for(config_dir)
    own = own_groups(catalog)
    by_choices: dict[tuple[str, ...], tuple[Composed, dict[str, Any]]] = {}
    composed_jobs = []
    for lines in jobs:
        given = parse(lines, catalog)
        choices = tuple(given.choices())
        if choices not in by_choices:
            by_choices[choices] = composed_choices(given, config_dir), {}
        composed, known = by_choices[choices]
        run = with_values(composed, given).run
        idle = tuple(unused(run, given))
        kept = [line for line in given.of_run() if line.partition("=")[0] not in idle]
        config = {**_resolved(run, known), **own, "choices": composed.choices, "overrides": kept}
        composed_jobs.append(Job(tuple(o.input_line or "" for o in given.parsed), dict(sorted(config.items())), idle))
    return composed_jobs


def _resolved(run: Plain, known: dict[str, Any]) -> dict[str, Any]:
    """The nodes and used axes with their references filled in; `known` caches nodes by their content."""
    config: dict[str, Any] = {}
    for name in (*used_axes(run), *nodes(run)):
        referenced = _referenced(run, run[name])
        content = repr((name, run[name], referenced))
        if content not in known:
            known[content] = sorted_keys(resolved({**referenced, name: run[name]})[name])
        config[name] = known[content]
    return config


def _referenced(run: Plain, value: Any) -> dict[str, Any]:
    """The root keys, with their values, that a value refers to directly or indirectly."""
    found: dict[str, Any] = {}
    fresh = references(value, parts=True)
    while fresh:
        found |= {name: run[name] for name in fresh if name in run}
        fresh = set().union(*(references(found[name], parts=True) for name in fresh if name in found)) - {*found}
    return found
