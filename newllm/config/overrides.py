"""Parses overrides as typed on the command line, before Hydra does."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from newllm.config.catalog import Catalog
from newllm.errors import ConfigError
from newllm.labels import LABELS, value_of
from newllm.suggest import did_you_mean

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


# The keys of Hydra itself that have an effect here, besides hydra.launcher.OPTION.
_OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra/launcher", "hydra/sweeper")


@dataclass(frozen=True)
class Overrides:
    """One parsed command line."""

    parsed: "tuple[Override, ...]"
    catalog: Catalog

    @property
    def keys(self) -> list[str]:
        """The given keys, including group choices."""
        return [override.key_or_group for override in self.parsed]

    @property
    def values(self) -> "list[Override]":
        """The overrides that set a value of the run, the sweep or the launcher."""
        return [override for override in self.parsed if self._is_value(override)]

    def choices(self) -> list[str]:
        """The overrides that Hydra composes: choices and Hydra's own keys."""
        return [self._for_hydra(override) for override in self.parsed if not self._is_value(override)]

    def of_run(self) -> list[str]:
        """The overrides of the run itself, as typed but without ``+``: none of Hydra, sweep, launcher or labels."""
        others = ("hydra.", "hydra/", "sweep.")
        own = [o for o in self.parsed if not o.key_or_group.startswith(others) and o.key_or_group not in LABELS]
        return [(override.input_line or "").lstrip("+") for override in own]

    def for_hydra(self) -> list[str]:
        """All overrides, for a third-party sweeper: values as ``++key=value``, since newllm checks their names."""
        return [self._for_hydra(override) for override in self.parsed]

    def _is_value(self, override: "Override") -> bool:
        return override.key_or_group not in self.catalog.groups and not _is_hydra(override)

    def _for_hydra(self, override: "Override") -> str:
        line, key = override.input_line or "", override.key_or_group
        if key in LABELS:
            return f"{key}={json.dumps(override.value(), ensure_ascii=False)}"
        if key in self.catalog.groups:
            return line if key in self.catalog.defaults else f"+{line}"  # a user's own group may be left out
        return line if _is_hydra(override) or key in self.catalog.axes else "++" + line.lstrip("+")


def parse(overrides: Sequence[str], catalog: Catalog, sweep: bool = False) -> Overrides:
    """Parse overrides and check syntax, names of groups and options, and sweeps without -m.

    Options of `sweep` may be typed without the prefix: ``dry_run=true`` is ``sweep.dry_run=true``.
    sweep: allow ``a=1,2``.
    """
    if isinstance(overrides, str):  # from Python
        raise ConfigError(f"{overrides!r} is a string; expected a list of overrides, as in ['pos_encoding=alibi'].")
    parsed = []
    for line in overrides:
        key, equals, text = line.lstrip("+").partition("=")
        if key in LABELS and equals:
            parsed.append(_label(line, key, text))
            continue
        short = key in catalog.sweep_options
        try:
            override = parse_line(f"sweep.{line.lstrip('+')}" if short else line)
        except ValueError:
            raise ConfigError(_syntax_error(line, catalog)) from None
        if not override.key_or_group:
            raise ConfigError(_syntax_error(line, catalog))
        parsed.append(override)
    keys = [override.key_or_group for override in parsed]
    other_sweeper = "hydra/sweeper" in keys
    for override in parsed:
        _check(override, catalog, sweep, other_sweeper)
    _refuse_two_sweeps(parsed)
    return Overrides(tuple(parsed), catalog)


def _label(line: str, key: str, text: str) -> "Override":
    """A label, whose value is any text and not in Hydra's grammar."""
    from hydra.core.override_parser.types import Override, OverrideType, ValueType

    return Override(OverrideType.CHANGE, key, ValueType.ELEMENT, value_of(key, text), input_line=line)


def _refuse_two_sweeps(parsed: "Sequence[Override]") -> None:
    """Raises ConfigError for a key given twice, once with several values. Of single values, the last one wins."""
    lines: dict[str, str] = {}
    several = {override.key_or_group for override in parsed if override.is_sweep_override()}
    for override in parsed:
        key, line = override.key_or_group, override.input_line or ""
        if key in several and key in lines:
            raise ConfigError(f"{key} is given twice, as {lines[key]} and as {line}; give all its values once.")
        lines[key] = line


@cache
def parse_line(line: str) -> "Override":
    """Parse one override; raises ValueError if it is invalid."""
    # Cached: parsing takes a millisecond, and the runs of a sweep repeat the same few lines.
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if sys.flags.optimize and "(" in line:
        raise ConfigError(
            f"{line}: Hydra reads functions by its assertions, so unset PYTHONOPTIMIZE, or list the values."
        )
    try:
        return OverridesParser.create().parse_override(line)
    except (HydraException, RecursionError) as error:  # the latter for a list that is nested 1,000 deep
        raise ValueError(str(error)) from None


def _syntax_error(line: str, catalog: Catalog) -> str:
    key, equals, value = line.partition("=")
    if key and equals:
        return (
            f"{line!r} can't be read: expected key=value with balanced brackets and quotes; a value with special "
            f"characters goes in quotes, as in '{key}=\"{value}\"'."
        )
    known = line in catalog.groups or line in catalog.axes
    example = f"{line}=VALUE" if known else "theta=1e4 or pos_encoding=alibi"
    return f"{line!r} is not an override; expected key=value, as in {example}."


def _check(override: "Override", catalog: Catalog, sweep: bool, other_sweeper: bool) -> None:
    key, line = override.key_or_group, override.input_line or ""
    if _is_hydra(override) and not (key in _OF_HYDRA or (other_sweeper and key.startswith("hydra.sweeper."))):
        if key.startswith("hydra.sweeper"):
            raise ConfigError(
                f"{line}: {key} is of another sweeper; type hydra/sweeper=NAME too, or values as lr=1e-3,2e-3."
            )
        raise ConfigError(f"{line}: {key} is no key of Hydra that newllm reads; {did_you_mean(key, _OF_HYDRA)}.")
    takes_list = key not in catalog.groups or key in catalog.lists
    if override.is_sweep_override() and key.startswith(("sweep.", "hydra.", "hydra/")):
        raise ConfigError(f"{line}: {key} takes one value for the whole sweep; write a list as '{key}=[…]'.")
    if override.is_sweep_override() and not sweep:
        listed = takes_list and "," in line and "(" not in line
        example = f", or write a list as '{line.replace('=', '=[', 1)}]'" if listed else ""
        raise ConfigError(
            f"{line} is a sweep over several runs; add -m (in Python: newllm.sweep) to run them{example}."
        )
    if key == "hydra/launcher" and override.value() not in catalog.launchers:
        meant = did_you_mean(str(override.value()), catalog.launchers, prefix="hydra/launcher=")
        raise ConfigError(f"{line}: {meant}.")
    if override.is_delete() and not _is_hydra(override):
        alternative = f"type {key}=none" if "none" in catalog.groups.get(key, []) else "leave it out to get its default"
        instead = f"type '{key}=[]' for none" if key in catalog.lists else alternative
        raise ConfigError(f"{line}: nothing can be deleted from a configuration; {instead}.")
    if key not in catalog.groups:
        return
    if override.is_add() or override.is_force_add():
        raise ConfigError(f"{line}: {key} is an existing choice; type {line.lstrip('+')}, without +.")
    if override.package:
        raise ConfigError(f"{line}: a choice can't be moved to another place; type {key}=NAME.")
    if not override.is_sweep_override():
        check_option(key, override.value(), catalog)


def check_option(group: str, value: object, catalog: Catalog) -> None:
    """Raises ConfigError if `value` is not an option of the group."""
    names = catalog.groups[group]
    if isinstance(value, list) and group not in catalog.lists:
        raise ConfigError(f"{group} takes one choice, got {value}; type {group}=NAME, as in {group}={names[0]}.")
    if value is None and group == "experiment":
        return
    for option in value if isinstance(value, list) else [value]:
        if not isinstance(option, str) or option not in names:
            name = "null" if option is None else str(option)
            looked = "".join(f", nor {folder / group / name}.yaml" for folder in catalog.folders[:-1])
            meant = did_you_mean(name, names, f"{group}=")
            raise ConfigError(f"{group}={name}: there is no such {group}{looked}; {meant}.")


def _is_hydra(override: "Override") -> bool:
    """Whether Hydra checks this key; newllm checks the options of its own launchers."""
    key = override.key_or_group
    return key.startswith(("hydra.", "hydra/")) and not key.startswith("hydra.launcher.")
