"""Which runs can be packed, judged from their configurations alone."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from newllm.config.groups import group_of, groups
from newllm.config.identity import canonical, content_mark
from newllm.config.values import signature_of
from newllm.errors import ConfigError
from newllm.suggest import listed

MAY_DIFFER = "seeds, optim, eval, model.init_std and real-valued options of pos_encoding"

Config = Mapping[str, Any]


def shared_values(config: Config) -> dict[str, Any]:
    """Dotted key -> value of everything that packed runs must have in common, of an effective configuration."""
    shared: dict[str, Any] = {}
    for name, node in config.items():
        pack = group_of(str(name), config).pack
        if isinstance(node, Mapping) and name not in ("choices", "groups", "content") and pack != "own":
            _collect(node, str(name), shared, pack if isinstance(pack, tuple) else (), real=pack == "real")
    contents = config.get("content") or {}
    return shared | {key: content_mark(found) for key, found in contents.items() if key in shared}


def _collect(node: Mapping[str, Any], path: str, shared: dict[str, Any], free: tuple[str, ...], real: bool) -> None:
    """Add the options of a node, except those that may differ: seeds, `free` and, if `real`, real-valued ones."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            _collect(value, f"{path}.{name}", shared, (), real)
        elif name != "seed" and name not in free and not (real and _is_real(value) and _takes_real(node, name)):
            shared[f"{path}.{name}"] = value


def pack_key(config: Config) -> str:
    """A text that is equal for runs that can be packed."""
    return _text(shared_values(config))


def differing(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """The keys that prevent packing because their values differ, with the distinct values in order."""
    shared = [shared_values(config) for config in configs]
    different = {}
    for key in dict.fromkeys(key for values in shared for key in values):
        distinct = {_text(values.get(key, "absent")): values.get(key, "absent") for values in shared}
        if len(distinct) > 1:
            different[key] = list(distinct.values())
    return different


def reason_to_train_alone(config: Config) -> str | None:
    """Why a run cannot be part of any pack; None if it can."""
    if int(config["trainer"].get("devices", 1)) > 1:
        return "a packed run has one process, so leave trainer.devices at 1"
    if config["trainer"].get("precision") == "fp16":
        return "precision=fp16 scales the loss of each run by itself, so leave pack out, or type precision=bf16 or fp32"
    for group in groups(config).values():
        if group.pack == "alone" and config.get(group.name):
            chosen = (config.get("choices") or {}).get(group.name)
            return f"a run with {group.name}{f'={chosen}' if chosen else ''} trains alone, so leave pack out"
    return None


def reason_not_to_pack(configs: Sequence[Config]) -> str | None:
    """Why no two of these runs can be packed; None if some can, or if there is only one run."""
    if len(configs) > 1 and all(map(reason_to_train_alone, configs)):
        return reason_to_train_alone(configs[0])
    if len(configs) < 2 or len({pack_key(config) for config in configs}) < len(configs):
        return None
    return _explain(differing(configs))


def require_compatible(configs: Sequence[Config], pack: int | str) -> None:
    """Raises ConfigError with the keys that differ unless all these runs can be packed together."""
    different = differing(configs)
    if why := reason_not_to_pack(configs) or (_explain(different) if different else None):
        raise ConfigError(f"pack={pack}: {why}.")


def _explain(different: Mapping[str, Sequence[Any]]) -> str:
    keys = [f"{name} ({', '.join(map(str, values))})" for name, values in different.items()]
    return f"the runs differ in {listed(keys, 4)}; only {MAY_DIFFER} may differ"


def _takes_real(node: Mapping[str, Any], name: str) -> bool:
    """Whether the constructor declares the option as a real number, or a list of them; True without a constructor."""
    if "_target_" not in node:
        return True
    option = signature_of(str(node["_target_"])).options.get(name)
    return option is not None and "float" in str(option.annotation)


def _is_real(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_real, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return json.dumps(canonical(value), sort_keys=True)
