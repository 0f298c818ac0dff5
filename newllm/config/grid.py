"""The combinations of a sweep, as lists of overrides."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from newllm.config.overrides import Overrides, check_option, parse_line
from newllm.config.values import shown
from newllm.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override, RangeSweep

MOST_RUNS = 100_000  # of a sweep; a longer plan takes many minutes to make and says nothing to anyone
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
Dimension = list[tuple[str, ...]]  # alternatives: each sets one key, or several keys together


def combinations(
    given: Overrides,
    *,
    seeds: int | None = None,
    grids: Sequence[Mapping[str, Any]] = (),
    zips: Sequence[Mapping[str, Any]] = (),
) -> list[list[str]]:
    """Every combination of the command line's values with those of each grid; the last key changes fastest.

    Keys on the command line replace those of a grid. Raises ConfigError for values that cannot be combined.
    """
    typed = [_dimension(override, given) for override in given.parsed]
    if seeds is not None:
        if "seed" in given.keys:
            raise ConfigError(f"seeds={seeds} and seed=… were both given; give one of the two.")
        _require_few(f"seeds={seeds}", seeds)
        typed.append([(f"seed={number}",) for number in range(1, seeds + 1)])
    taken = {*given.keys, *(["seed"] if seeds is not None else [])}
    runs: list[list[str]] = []
    for grid in grids or [{}]:
        keys = {str(key): value for key, value in grid.items() if key != "zip"}
        of_grid = [_values(key, value, given) for key, value in keys.items() if key not in taken]
        inner = [grid["zip"]] if "zip" in grid else []
        zipped = [_zipped(group, taken) for group in (*zips, *inner)]
        dimensions = [*typed, *of_grid, *filter(None, zipped)]
        _require_few("this sweep", len(runs) + math.prod(map(len, dimensions)))
        runs += [[line for part in parts for line in part] for parts in product(*dimensions)]
    return runs


def _require_few(what: str, count: int) -> None:
    """Raises ConfigError for more runs than a sweep may have."""
    if count > MOST_RUNS:
        raise ConfigError(f"{what} has {count:,} runs, and a sweep has at most {MOST_RUNS:,}; give fewer values.")


def _dimension(override: "Override", given: Overrides) -> Dimension:
    """The values of one override."""
    from hydra.core.override_parser.types import Glob, RangeSweep
    from hydra.errors import HydraException

    line, value, key, catalog = override.input_line or "", override.value(), override.key_or_group, given.catalog
    if not override.is_sweep_override():
        return [(line,)]
    if isinstance(value, Glob):
        if key not in catalog.groups:
            raise ConfigError(f"{line}: glob chooses among the names of a group, and {key} is not a group.")
        values = value.filter(catalog.groups[key])
        if not values:
            raise ConfigError(f"{line} matches no {key}; there are {', '.join(catalog.groups[key])}.")
    elif not override.is_discrete_sweep():
        raise ConfigError(f"{line}: an interval has no discrete values to run; type '{key}=range(…)' or a list a,b,c.")
    else:
        if isinstance(value, RangeSweep):
            _require_few(line, _length(line, value))
        try:
            values = [str(one) for one in override.sweep_string_iterator()]
        except (HydraException, ValueError) as error:
            raise ConfigError(f"{line}: {str(error).splitlines()[0]}.") from None
        if not values:
            raise ConfigError(f"{line} has no values; type {key}=a,b or a range that is not empty.")
        for name in values if key in catalog.groups else []:
            check_option(key, parse_line(f"{key}={name}").value(), catalog)
    return [(f"{override.get_key_element()}={one}",) for one in values]


def _length(line: str, values: "RangeSweep") -> int:
    """How many values a range has. Raises ConfigError if that is no number."""
    try:
        start, stop, step = (float(one or 0) for one in (values.start, values.stop, values.step))
        return max(0, math.ceil((stop - start) / step))
    except (ValueError, ArithmeticError):  # nan, infinity, 10^400, a step of 0
        raise ConfigError(f"{line}: expected finite numbers and a step other than 0, as in range(1,4).") from None


def _values(key: str, value: Any, given: Overrides) -> Dimension:
    """The values of one key of a grid: a list, a string as on the command line, or a single value."""
    if isinstance(value, str):
        return _dimension(_read(f"{key}={value}"), given)
    if value == []:
        raise ConfigError(f"sweep.grids: {key} has an empty list of values; give at least one, or leave it out.")
    return [(f"{key}={_typed(one)}",) for one in (value if isinstance(value, list) else [value])]


def _zipped(group: Mapping[str, Any], taken: set[str]) -> Dimension:
    """The values of keys that change together."""
    if not isinstance(group, Mapping) or not group or not all(isinstance(one, list) and one for one in group.values()):
        raise ConfigError(
            f"sweep.zip: expected lists of values by key, as in {{lr: [1e-3, 5e-4]}}; got {shown(group)}."
        )
    if len({len(values) for values in group.values()}) > 1:
        counts = ", ".join(f"{key} has {len(values)}" for key, values in group.items())
        raise ConfigError(f"sweep.zip: keys that change together need equally many values; {counts}.")
    if both := [key for key in group if key in taken]:
        raise ConfigError(f"{both[0]} changes together with other keys in sweep.zip; leave it out of the command line.")
    lines = [[f"{key}={_typed(one)}" for one in values] for key, values in group.items()]
    for line in (line for several in lines for line in several):
        _read(line)
    return list(zip(*lines, strict=True))


def _read(line: str) -> "Override":
    try:
        return parse_line(line)
    except ValueError:
        raise ConfigError(f"sweep: {line!r} can't be read as an override; expected key=value or key=a,b,c.") from None


def _typed(value: Any) -> str:
    """A value from YAML in the syntax of the command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_typed(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false"):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
