"""Whether a model takes an attention and an encoding, and whether the configuration has just what it takes."""

from omegaconf import DictConfig

from newllm.config import schema
from newllm.config.groups import group_of, parts_of
from newllm.errors import ConfigError


def refuse_idle(cfg: DictConfig) -> None:
    """ConfigError for an attention or an encoding that the model has no use for, or lacks."""
    if "_target_" not in cfg.model:
        return
    taken = schema.options(str(cfg.model["_target_"]))
    model = f"model={cfg.choices.get('model')}"
    for group in parts_of("model", cfg):
        given = "_target_" in cfg[group]
        if not given and group in taken.handed:
            raise ConfigError(f"{group}=none: {model} needs one; type {group}={group_of(group, cfg).suggest}.")
        if given and group not in taken.handed and not taken.open:
            raise ConfigError(f"{model} has no {group}; leave {group}={cfg.choices.get(group)} out.")
