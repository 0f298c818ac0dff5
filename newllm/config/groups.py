"""The properties of each group of choices, read from conf/groups.yaml, which documents each column."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from newllm.config.catalog import plain, shipped
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean


@dataclass(frozen=True)
class Group:
    """One line of the table."""

    name: str
    numbers: bool = True
    idle: tuple[str, ...] = ()
    part_of: str | None = None
    suggest: str | None = None
    stage: bool = False
    handed: tuple[str, ...] = ()
    paths: Mapping[str, Literal["files", "folder", "name"]] = field(default_factory=dict)
    label: Literal["first", "differing", "never"] = "differing"
    pack: Literal["equal", "own", "real", "alone"] | tuple[str, ...] = "equal"
    evaluate: Literal["any", "options"] | tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    report: str | None = None


def groups(config: Mapping[str, Any] | None = None) -> dict[str, Group]:
    """Name -> properties of the shipped groups and of the user's own, which a configuration keeps under `groups`."""
    own = config.get("groups") if config is not None else None
    if not own:
        return _shipped()
    entries = plain(own) if isinstance(own, DictConfig) else own
    return _shipped() | {name: _group(name, facts) for name, facts in entries.items()}


def group_of(name: str, config: Mapping[str, Any] | None = None) -> Group:
    """The properties of one group; the defaults if it has no entry."""
    return groups(config).get(name) or Group(name)


def parts_of(owner: str, config: Mapping[str, Any] | None = None) -> list[str]:
    """The groups whose nodes are passed to the constructor of group `owner`."""
    return [group.name for group in groups(config).values() if group.part_of == owner]


def stages(config: Mapping[str, Any] | None = None) -> list[str]:
    """The groups that run before the model is trained, in order."""
    return [group.name for group in groups(config).values() if group.stage]


def read(folder: Path) -> dict[str, Any]:
    """The plain entries of a folder's groups.yaml, {} if it has none. Raises ConfigError for an unknown column."""
    file = folder / "groups.yaml"
    if not file.is_file():
        return {}
    content = plain(OmegaConf.load(file))
    for name, facts in content.items():
        try:
            _group(name, facts)
        except TypeError as error:
            columns = [column.name for column in fields(Group)][1:]
            wrong = next((key for key in facts or {} if key not in columns), str(error))
            raise ConfigError(f"{file}: {name}.{wrong}: {did_you_mean(str(wrong), columns)}.") from None
    return {name: facts or {} for name, facts in content.items()}


@cache
def _shipped() -> dict[str, Group]:
    return {name: _group(name, facts) for name, facts in read(shipped()).items()}


def _group(name: str, facts: Mapping[str, Any] | None) -> Group:
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in (facts or {}).items()
    }
    return Group(name, **given)
