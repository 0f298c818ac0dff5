"""Overrides as typed on the command line, read before Hydra sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from newllm.config.catalog import Catalog
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


@dataclass(frozen=True)
class Overrides:
    """One parsed command line. `sweep` says whether ``a=1,2`` is allowed."""

    parsed: "tuple[Override, ...]"
    catalog: Catalog

    @property
    def keys(self) -> list[str]:
        """The keys given, group choices among them."""
        return [override.key_or_group for override in self.parsed]

    @property
    def values(self) -> "list[Override]":
        """Those that set a value of the run, of the sweep or of the launcher."""
        return [o for o in self.parsed if o.key_or_group not in self.catalog.groups and not _is_hydra(o)]

    def choices(self) -> list[str]:
        """Those that Hydra composes: choices, and what is Hydra's own."""
        return [self._for_hydra(override) for override in self.parsed if override not in self.values]

    def of_run(self) -> list[str]:
        """As typed, without ``+``, and without what says nothing of the run itself (sweep, launcher)."""
        others = ("hydra.", "hydra/", "sweep.")
        return [(o.input_line or "").lstrip("+") for o in self.parsed if not o.key_or_group.startswith(others)]

    def for_hydra(self) -> list[str]:
        """All of them for a sweeper that is not ours: values as ``++key=value``, since we check their names."""
        return [self._for_hydra(override) for override in self.parsed]

    def _for_hydra(self, override: "Override") -> str:
        line, key = override.input_line or "", override.key_or_group
        if key in self.catalog.groups:
            return line if key in self.catalog.defaults else f"+{line}"  # a user's own group may be left out
        return line if _is_hydra(override) or key in self.catalog.axes else "++" + line.lstrip("+")


def parse(overrides: Sequence[str], catalog: Catalog, sweep: bool = False) -> Overrides:
    """Parse and check what needs no composition: syntax, names of groups and options, sweeps without -m.

    The options of `sweep` may be typed without it: ``dry_run=true`` is ``sweep.dry_run=true``.
    """
    from hydra.errors import HydraException

    parsed = []
    for line in overrides:
        short = line.lstrip("+").partition("=")[0] in catalog.sweep_options
        try:
            parsed.append(parse_line(f"sweep.{line.lstrip('+')}" if short else line))
        except HydraException:
            raise ConfigError(_syntax(line, catalog)) from None
    for override in parsed:
        if not override.key_or_group:
            raise ConfigError(_syntax(override.input_line or "", catalog))
        _check(override, catalog, sweep)
    return Overrides(tuple(parsed), catalog)


@cache
def parse_line(line: str) -> "Override":
    """One override; HydraException if it is none."""
    # A sweep of thousands of runs repeats its few lines, and the grammar takes a millisecond for each.
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(line)


def _syntax(line: str, catalog: Catalog) -> str:
    key, equals, value = line.partition("=")
    if key and equals:
        return (
            f"{line!r} can't be read: expected key=value with balanced brackets and quotes; a value with special "
            f"characters goes in quotes, as in '{key}=\"{value}\"'."
        )
    known = line in catalog.groups or line in catalog.axes
    example = f"{line}=VALUE" if known else "theta=1e4 or pos_encoding=alibi"
    return f"{line!r} is not an override; expected key=value, as in {example}."


def _check(override: "Override", catalog: Catalog, sweep: bool) -> None:
    key, line = override.key_or_group, override.input_line or ""
    takes_list = key not in catalog.groups or key in catalog.lists
    if override.is_sweep_override() and key.startswith(("sweep.", "hydra.", "hydra/")):
        raise ConfigError(f"{line}: {key} is one value for the whole sweep; a list is written {key}=[…].")
    if override.is_sweep_override() and not sweep:
        listed = takes_list and "," in line and "(" not in line
        example = f", or write a list as {line.replace('=', '=[', 1)}]" if listed else ""
        raise ConfigError(f"{line} is a sweep over several runs; add -m to run them{example}.")
    if key == "hydra/launcher" and override.value() not in catalog.launchers:
        meant = did_you_mean(str(override.value()), catalog.launchers, prefix="hydra/launcher=")
        raise ConfigError(f"{line}: {meant}.")
    if override.is_delete() and not _is_hydra(override):
        none = f"type {key}=none" if "none" in catalog.groups.get(key, []) else "leave it out to get its default"
        instead = f"type {key}=[] for none" if key in catalog.lists else none
        raise ConfigError(f"{line}: nothing can be deleted from a configuration; {instead}.")
    if key not in catalog.groups:
        return
    if override.is_add() or override.is_force_add():
        raise ConfigError(f"{line}: {key} is a choice that exists already; type {line.lstrip('+')}, without +.")
    if override.package:
        raise ConfigError(f"{line}: a choice can't be moved to another place; type {key}=NAME.")
    if not override.is_sweep_override():
        check_option(key, override.value(), catalog)


def check_option(group: str, value: object, catalog: Catalog) -> None:
    """Refuse a value of a group that is none of its options."""
    names = catalog.groups[group]
    if isinstance(value, list) and group not in catalog.lists:
        raise ConfigError(f"{group} takes one choice, got {value}; type {group}=NAME, as in {group}={names[0]}.")
    if value is None and group == "experiment":
        return
    for option in value if isinstance(value, list) else [value]:
        if not isinstance(option, str) or option not in names:
            said = "null" if option is None else str(option)
            raise ConfigError(f"{group}={said}: there is no such {group}; {did_you_mean(said, names, f'{group}=')}.")


def _is_hydra(override: "Override") -> bool:
    """Is it Hydra's to judge? The options of our launchers are ours."""
    key = override.key_or_group
    return key.startswith(("hydra.", "hydra/")) and not key.startswith("hydra.launcher.")
