"""Root axes: which of them a configuration uses, and what is said about one that it does not."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from newllm.config.catalog import Catalog, references
from newllm.config.overrides import Overrides
from newllm.errors import ConfigError

OWN_KEYS = ("choices", "overrides", "run_dir", "groups")  # keys of a configuration that are neither node nor axis


def nodes(cfg: DictConfig) -> dict[str, Any]:
    """Root key -> plain, unresolved group node."""
    return _nodes(_plain(cfg))


def axes(cfg: DictConfig) -> list[str]:
    """The root keys that are no group nodes."""
    return _axes(_plain(cfg))


def used_axes(cfg: DictConfig) -> list[str]:
    """The axes that some node refers to, directly or through another axis."""
    return _used(_plain(cfg))


def unused(cfg: DictConfig, given: Overrides) -> list[str]:
    """The axes given on the command line that change nothing in this configuration."""
    plain = _plain(cfg)
    idle = {*_axes(plain)}.difference(_used(plain))
    return [key for key in dict.fromkeys(given.keys) if key in idle]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _nodes(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if isinstance(value, dict) and key not in OWN_KEYS}


def _axes(plain: dict[str, Any]) -> list[str]:
    return [key for key, value in plain.items() if not isinstance(value, dict) and key not in OWN_KEYS]


def _used(plain: dict[str, Any]) -> list[str]:
    everything = _axes(plain)
    found: set[str] = set()
    fresh = references(_nodes(plain))
    while fresh:
        found |= fresh
        fresh = references([plain[name] for name in fresh if name in everything]) - found
    return [name for name in everything if name in found]


def refuse_unused(cfg: DictConfig, catalog: Catalog, given: Overrides) -> None:
    """ConfigError for an axis that was given and that the chosen groups do not use."""
    for axis in unused(cfg, given):
        raise ConfigError(why_unused(axis, cfg, catalog, given))


def why_unused(axis: str, cfg: DictConfig, catalog: Catalog, given: Overrides) -> str:
    """One sentence: where the axis would have an effect, and what this run has there."""
    users = catalog.users(axis)
    for group, options in users.items():
        chosen = cfg.choices.get(group)
        if chosen in options or (isinstance(chosen, list | tuple) and set(chosen) & set(options)):
            winner = next((key for key in given.keys if key.startswith(f"{group}.") and key.endswith(f".{axis}")), None)
            if winner:
                return f"{axis} has no effect, since {winner} is given too and wins; give one of the two."
            source = f"experiment={cfg.choices.experiment}" if cfg.choices.get("experiment") else "the configuration"
            return (
                f"{axis} has no effect, since {source} sets that option of {group} itself; type {group}.OPTION=VALUE."
            )
    if not users:
        return f"{axis} is an axis that no choice of any group uses; leave it out."
    where = ", ".join(f"{group}={', '.join(options)}" for group, options in users.items())
    here = ", ".join(f"{group}={cfg.choices.get(group)}" for group in users)
    example = next(f"{group}={options[0]}" for group, options in users.items())
    return f"{axis} is an axis of {where}; this run has {here}: leave {axis} out, or type {example}."
