"""Root axes of a plain, unresolved configuration: which ones it uses, and the error for an unused one."""

from collections.abc import Mapping
from typing import Any

from newllm.config.catalog import references
from newllm.config.overrides import Overrides
from newllm.errors import ConfigError
from newllm.labels import LABELS

OWN_KEYS = ("choices", "overrides", "run_dir", "groups", "content", *LABELS)  # neither nodes nor axes

Plain = Mapping[str, Any]


def nodes(plain: Plain) -> dict[str, Any]:
    """Root key -> group node."""
    return {key: value for key, value in plain.items() if isinstance(value, dict) and key not in OWN_KEYS}


def axes(plain: Plain) -> list[str]:
    """The root keys that are not group nodes."""
    return [key for key, value in plain.items() if not isinstance(value, dict) and key not in OWN_KEYS]


def referenced(plain: Plain, value: Any) -> dict[str, Any]:
    """The root keys, with their values, that a value refers to, directly or through another root key."""
    found: dict[str, Any] = {}
    pending = references(value)
    while pending:
        values = {name: plain[name] for name in pending if name in plain}
        found |= values
        pending = references(values) - {*found}
    return found


def used_axes(plain: Plain) -> list[str]:
    """The axes that some node refers to, directly or through another axis."""
    used = referenced(plain, nodes(plain))
    return [name for name in axes(plain) if name in used]


def unused(plain: Plain, given: Overrides) -> list[str]:
    """The axes given on the command line that have no effect on this configuration."""
    without_effect = {*axes(plain)}.difference(used_axes(plain))
    return [key for key in dict.fromkeys(given.keys) if key in without_effect]


def refuse_unused_axes(config: Plain, given: Overrides) -> None:
    """Raises ConfigError if an axis was given that the chosen groups do not use."""
    for axis in unused(config, given):
        raise unused_axis_error(axis, config["choices"], given)


def unused_axis_error(axis: str, choices: Mapping[str, Any], given: Overrides) -> ConfigError:
    """The error for an unused axis: where it would have an effect, and what this run has there."""
    users = given.catalog.users(axis)
    for group, options in users.items():
        chosen = choices.get(group)
        if chosen in options or (isinstance(chosen, list) and set(chosen) & set(options)):
            winner = next((key for key in given.keys if key.startswith(f"{group}.") and key.endswith(f".{axis}")), None)
            if winner:
                return ConfigError(
                    f"{axis} has no effect, since {winner} is given too and takes precedence; give one of the two."
                )
            source = f"experiment={choices['experiment']}" if choices.get("experiment") else "the configuration"
            return ConfigError(
                f"{axis} has no effect, since {source} sets that option of {group} itself; type {group}.OPTION=VALUE."
            )
    if not users:
        return ConfigError(f"{axis} is an axis that no choice of any group uses; leave it out.")
    where = ", ".join(f"{group}={', '.join(options)}" for group, options in users.items())
    here = ", ".join(f"{group}={choices.get(group)}" for group in users)
    example = next(f"{group}={options[0]}" for group, options in users.items())
    return ConfigError(f"{axis} is an axis of {where}; this run has {here}: leave {axis} out, or type {example}.")
