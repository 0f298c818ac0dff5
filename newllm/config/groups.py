"""The properties of each group of choices, read from conf/groups.yaml, which documents each column."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from newllm.config.catalog import load, plain, shipped
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean


@dataclass(frozen=True)
class Group:
    """One entry of conf/groups.yaml."""

    name: str
    numbers: bool = True
    trained: bool = True
    idle: tuple[str, ...] = ()
    added: Mapping[str, Any] = field(default_factory=dict)
    part_of: str | None = None
    suggest: str | None = None
    stage: bool = False
    handed: tuple[str, ...] = ()
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: Literal["first", "differing", "never"] = "differing"
    pack: Literal["equal", "own", "real", "alone"] | tuple[str, ...] = "equal"
    evaluate: Literal["any", "options"] | tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    report: str | None = None


def groups(config: Mapping[str, Any] | None = None) -> dict[str, Group]:
    """Name -> properties of the shipped groups and of the user's own, which a configuration keeps under `groups`."""
    entries = config.get("groups") if config is not None else None
    if not entries:
        return _shipped()
    entries = plain(entries) if isinstance(entries, DictConfig) else entries
    try:
        return _shipped() | {name: _group(name, entry) for name, entry in entries.items()}
    except (TypeError, AttributeError) as error:  # in a run directory of somebody else
        raise ConfigError(f"the stored configuration has wrong properties of its groups ({error}).") from None


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
    content = load(file)
    for name, entry in content.items():
        try:
            _group(name, entry)
        except TypeError as error:
            columns = [column.name for column in fields(Group)][1:]
            wrong = next((key for key in entry or {} if key not in columns), str(error))
            raise ConfigError(f"{file}: {name}.{wrong}: {did_you_mean(str(wrong), columns)}.") from None
    return {name: entry or {} for name, entry in content.items()}


@cache
def _shipped() -> dict[str, Group]:
    return {name: _group(name, entry) for name, entry in read(shipped()).items()}


def _group(name: str, entry: dict[str, Any] | None) -> Group:
    columns: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in (entry or {}).items()}
    columns["paths"] = {
        option: (patterns,) if isinstance(patterns, str) else tuple(patterns)
        for option, patterns in columns.get("paths", {}).items()
    }
    return Group(name, **columns)
