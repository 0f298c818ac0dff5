"""Which runs can be packed, from their configurations alone."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from newllm.config.groups import group_of, groups
from newllm.config.identity import canonical
from newllm.config.values import signature_of
from newllm.errors import ConfigError

MAY_DIFFER = "seeds, optim, model.init_std and real-valued options of pos_encoding"
_LISTED = 4  # keys in a refusal

Config = Mapping[str, Any]
Fixed = dict[str, Any]


def fixed(config: Config) -> Fixed:
    """Dotted key -> value of all that packed runs must have in common, of an effective configuration."""
    found: Fixed = {}
    for name, node in config.items():
        free = group_of(str(name), config).pack
        if isinstance(node, Mapping) and name not in ("choices", "groups") and free != "own":
            _collect(node, str(name), found, free)
    return found


def key(config: Config) -> str:
    """Equal texts, for runs that can be packed."""
    return json.dumps(canonical(fixed(config)), sort_keys=True)


def differing(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Keys that would have to be equal and are not, each with its distinct values in order."""
    all_fixed = [fixed(config) for config in configs]
    keys = dict.fromkeys(key for one in all_fixed for key in one)
    values = {key: _distinct(one.get(key, "absent") for one in all_fixed) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def hindrance(config: Config) -> str | None:
    """Why a run can be in no pack, whatever the others are; None if it can."""
    if int(config["trainer"].get("devices", 1)) > 1:
        return "a packed run has one process, so leave trainer.devices at 1"
    for group in groups(config).values():
        if group.pack == "alone" and config.get(group.name):
            chosen = (config.get("choices") or {}).get(group.name)
            return f"a run with {group.name}{f'={chosen}' if chosen else ''} trains alone, so leave pack out"
    return None


def unpackable(configs: Sequence[Config]) -> str | None:
    """Why no two of these runs can be packed; None if some can, or if there is but one."""
    if len(configs) > 1 and all(map(hindrance, configs)):
        return hindrance(configs[0])
    if len({key(config) for config in configs}) < len(configs) or len(configs) < 2:
        return None
    return _say(differing(configs))


def require_compatible(configs: Sequence[Config], pack: int | str) -> None:
    """ConfigError, with the keys that differ, unless all these runs can be packed together."""
    why = unpackable(configs) or (_say(differing(configs)) if differing(configs) else None)
    if why:
        raise ConfigError(f"pack={pack}: {why}.")


def _say(found: Mapping[str, Sequence[Any]]) -> str:
    listed = [f"{name} ({', '.join(map(str, values))})" for name, values in found.items()]
    more = f" and {len(listed) - _LISTED} more keys" if len(listed) > _LISTED else ""
    return f"the runs differ in {', '.join(listed[:_LISTED])}{more}; only {MAY_DIFFER} may differ"


def _collect(node: Mapping[str, Any], path: str, found: Fixed, free: str | tuple[str, ...]) -> None:
    real = _real_options(node) if free == "real" else set()
    own = free if isinstance(free, tuple) else ()
    for name, value in node.items():
        where = f"{path}.{name}"
        if isinstance(value, Mapping):
            _collect(value, where, found, free if free == "real" else ())
        elif name != "seed" and name not in own and not (name in real and _is_real(value)):
            found[where] = value


def _real_options(node: Mapping[str, Any]) -> set[str]:
    """Options that are declared to be real numbers, or lists of them; of a mapping that names no constructor, all."""
    if "_target_" not in node:
        return set(node)
    options = signature_of(str(node["_target_"])).options
    return {name for name, option in options.items() if "float" in str(option.annotation)}


def _is_real(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_real(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distinct(values: Any) -> list[Any]:
    return list({json.dumps(canonical(value), sort_keys=True): value for value in values}.values())
