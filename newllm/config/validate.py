"""Every node against the signature of its `_target_`: names, required options, types. Nothing is imported or built."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.axes import OWN_KEYS, nodes
from newllm.config.catalog import REFERENCE, Catalog, references
from newllm.config.coercion import coerce, expected
from newllm.config.overrides import Overrides
from newllm.config.parts import refuse_idle
from newllm.config.schema import REQUIRED, UNREAD, Option, Signature, options
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean, nearest


def validate(cfg: DictConfig, catalog: Catalog, given: Overrides) -> None:
    """Check `cfg` whole and bring its values, in place, to the types of their annotations.

    A value that an axis supplies is converted at the axis, so that ``theta=10000`` and ``theta=1e4`` are one
    configuration and the reference stays a reference.
    """
    _check_root(cfg, catalog)
    refuse_idle(cfg)
    for path, node in _targets(cfg):
        _check_node(cfg, path, node)


def validate_node(path: str, node: DictConfig) -> DictConfig:
    """A copy of a node that stands beside the run (of the sweep, of the launcher), checked as the run's nodes are."""
    alone = OmegaConf.create({"node": OmegaConf.to_container(node, resolve=True), "choices": {}})
    _check_node(alone, path, alone.node)
    return alone.node


def _check_root(cfg: DictConfig, catalog: Catalog) -> None:
    groups = nodes(cfg)
    known = {*catalog.axes, *catalog.groups, *references(groups), *OWN_KEYS}
    for key in map(str, cfg):
        if key not in known:
            raise ConfigError(_unknown_root(key, groups, catalog))
    for group, node in groups.items():
        many = isinstance(catalog.defaults.get(group), list)
        if "_target_" in node or not node:
            continue
        for name, child in node.items():
            if many and isinstance(child, dict) and "_target_" in child:
                continue
            if many and name in catalog.groups[group]:
                chosen = ",".join([*cfg.choices[group], name])
                raise ConfigError(f"{group}.{name} is not among this run's {group}; add it with {group}=[{chosen}].")
            if many:
                raise ConfigError(
                    f"{group}.{name}: unknown; {did_you_mean(str(name), catalog.groups[group], prefix=f'{group}.')}."
                )
            if group in catalog.axes:
                raise ConfigError(f"{group}.{name}: {group} is a single value; type {group}=VALUE.")
            choice = cfg.choices.get(group)
            raise ConfigError(
                f"{group}.{name}: {group}={choice} has no options; choose another {group} or leave it out."
            )


def _unknown_root(key: str, groups: dict[str, Any], catalog: Catalog) -> str:
    homes = [f"{group}.{key}" for group, node in groups.items() if key in node and "_target_" in node]
    if homes:
        return f"{key} is no root key; did you mean {homes[0]}?"
    names = [*catalog.axes, *catalog.groups, *catalog.sweep_options]
    close = nearest(key, names)
    meant = f"; did you mean {close}?" if close else ";"
    return f"{key} is unknown{meant} axes are {', '.join(catalog.axes)}; groups are {', '.join(catalog.groups)}."


def _targets(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Path and node of every mapping with a `_target_`, at whatever depth."""
    pending: list[tuple[str, Any]] = [(str(key), cfg._get_node(key)) for key in cfg if key not in OWN_KEYS]
    while pending:
        path, node = pending.pop(0)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            if "_target_" in node:
                yield path, node
            pending = [(f"{path}.{key}", node._get_node(key)) for key in list(node)] + pending
        elif isinstance(node, ListConfig) and not node._is_none() and not node._is_interpolation():
            pending = [(f"{path}[{i}]", node._get_node(i)) for i in range(len(node))] + pending


def _check_node(cfg: DictConfig, path: str, node: DictConfig) -> None:
    signature = options(str(node["_target_"]))
    for key in map(str, node):
        if key != "_target_" and key not in signature.options and not signature.open:
            raise ConfigError(_unknown_option(cfg, path, key, signature))
    for name, option in signature.options.items():
        missing = name not in node or OmegaConf.is_missing(node, name)
        if missing and option.default is REQUIRED:
            raise ConfigError(
                f"{path}.{name} is required and has no value: type {path}.{name}=VALUE, {expected(option.annotation)}."
            )
        if missing and option.default is not UNREAD:
            node[name] = option.default
        elif not missing:
            _convert(cfg, f"{path}.{name}", node, option)


def _unknown_option(cfg: DictConfig, path: str, key: str, signature: Signature) -> str:
    choice = cfg.choices.get(path)
    of = f"{path}={choice}" if choice else path
    if key in signature.handed:
        return f"{path}.{key} follows from other settings and is handed over to {of}; leave it out."
    if not signature.options:
        return f"{path}.{key}: {of} has no options; leave it out."
    return f"{path}.{key} is no option of {of}; {did_you_mean(key, signature.options, prefix=f'{path}.')}."


def _convert(cfg: DictConfig, path: str, node: DictConfig, option: Option) -> None:
    inner: Any = node._get_node(option.name)
    raw = OmegaConf.to_container(inner, resolve=False) if OmegaConf.is_config(inner) else inner._value()
    try:
        value = node[option.name]
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{path}={raw} can't be resolved ({first}); expected a key that exists.") from error
    axis = REFERENCE.fullmatch(raw) if isinstance(raw, str) else None
    key = axis[1] if axis else path
    try:
        converted = coerce(value, option.annotation)
    except ValueError as error:
        use = f" for {path}" if axis else ""
        raise ConfigError(f"{key}={_shown(value)}: {error}{use}.") from None
    if repr(converted) == repr(value):
        return
    if axis and not isinstance(cfg._get_node(key), DictConfig):
        cfg[key] = converted
    elif not references(raw):
        node[option.name] = converted


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
