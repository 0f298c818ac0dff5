"""Thousands of configurations in seconds: what a single value changes is composed once, not in every combination.

Runs whose choices are equal differ in values only. So for each set of choices Hydra composes one run, every other value
of a key is put into a copy of it and validated as usual, and what it changes in the effective configuration is
remembered; a combination is then the first run with the changes of its values. Where that would not be exact (two keys
change one place, references within references) the run is composed by itself.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from newllm.config.axes import unused
from newllm.config.compose import catalog_for, compose, finish, raw
from newllm.config.identity import effective
from newllm.config.overrides import Overrides, parse

_MORE_THAN_A_KEY = re.compile(r"\$\{[^}]*[$:]|\$\{[^}]*\.\.|\$\{\.")  # resolvers, nested and relative references
Changes = dict[tuple[str, ...], Any]


@dataclass(frozen=True)
class Composed:
    """One run of many: its effective configuration, and which of the given axes have no effect on it."""

    lines: tuple[str, ...]
    config: dict[str, Any]
    unused: tuple[str, ...]


def compose_many(jobs: Sequence[Sequence[str]], *, config_dir: str | Path | None = None) -> list[Composed]:
    """The runs that these lists of overrides describe, each equal to `effective(compose(overrides))`.

    An axis that a run does not use is left out of its overrides. Raises ConfigError.
    """
    catalog = catalog_for(config_dir)
    shapes: dict[tuple, _Shape] = {}
    found = []
    for lines in jobs:
        given = parse(lines, catalog)
        choices = tuple(o.input_line for o in given.parsed if o not in given.values or o.is_delete())
        shape = (choices, tuple(given.keys))
        if shape not in shapes:
            shapes[shape] = _Shape(given, config_dir)
        found.append(shapes[shape].compose(given))
    return found


class _Shape:
    """All runs with the same choices and the same keys."""

    def __init__(self, first: Overrides, config_dir: str | Path | None) -> None:
        self.first, self.config_dir = first, config_dir
        self.raw = raw(first, config_dir)
        self.by_parts = not _MORE_THAN_A_KEY.search(OmegaConf.to_yaml(self.raw.run))
        self.base, self.unused = self._finished(copy.deepcopy(self.raw.run), first)
        self.flat = _flat(self.base)
        self._changes: dict[str, Changes | None] = {}

    def compose(self, given: Overrides) -> Composed:
        lines = tuple(override.input_line or "" for override in given.parsed)
        config = self._by_parts(given) if self.by_parts else None
        if config is None:
            config = effective(compose(lines, config_dir=self.config_dir, unused_axes=True))
        kept = [line for line in given.of_run() if line.partition("=")[0] not in self.unused]
        return Composed(lines, dict(sorted({**config, "overrides": kept}.items())), self.unused)

    def _by_parts(self, given: Overrides) -> dict[str, Any] | None:
        """The first run with the changes of this one's values; None if that is not exact."""
        changes: Changes = {}
        for position, (ours, other) in enumerate(zip(self.first.parsed, given.parsed, strict=True)):
            if ours.input_line == other.input_line:
                continue
            line = other.input_line or ""
            if line not in self._changes:
                self._changes[line] = self._of(position, given)
            found = self._changes[line]
            if found is None or changes.keys() & found.keys():
                return None
            changes |= found
        config = self.base
        for path, value in changes.items():
            config = _with(config, path, value)
        return config

    def _of(self, position: int, given: Overrides) -> Changes | None:
        """What the value at `position` changes in the first run; None where it is more than values."""
        override = given.parsed[position]
        value = override.value()
        if isinstance(value, dict) or "${" in (override.input_line or ""):
            return None
        run = copy.deepcopy(self.raw.run)
        key = override.key_or_group.lstrip("+")
        with open_dict(run):
            OmegaConf.update(run, key, value, force_add=True)
        parsed = (*self.first.parsed[:position], override, *self.first.parsed[position + 1 :])
        config, unused_here = self._finished(run, replace(self.first, parsed=parsed))
        flat = _flat(config)
        if flat.keys() != self.flat.keys() or unused_here != self.unused:
            return None
        return {path: new for path, new in flat.items() if repr(new) != repr(self.flat[path])}

    def _finished(self, run: DictConfig, given: Overrides) -> tuple[dict[str, Any], tuple[str, ...]]:
        cfg = finish(replace(self.raw, run=run), given, unused_axes=True)
        config = effective(cfg)
        del config["overrides"]
        return config, tuple(unused(cfg, given))


def _flat(value: Any, path: tuple[str, ...] = ()) -> Changes:
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    parts = (_flat(item, (*path, str(key))) for key, item in value.items())
    return {where: item for part in parts for where, item in part.items()}


def _with(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy that shares all that is not on `path`."""
    key, *rest = path
    return {**config, key: _with(config[key], tuple(rest), value) if rest else value}
