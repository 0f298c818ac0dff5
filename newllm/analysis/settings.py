"""Settings of runs as flat keys (``attention.kv_dim``): which runs are equal, and in which settings others differ."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from newllm.config import identity
from newllm.config.groups import group_of

Flat = dict[str, Any]
Nodes = dict[str, str]  # name of a node -> its content as JSON


def nodes_of(configs: Iterable[Mapping[str, Any]]) -> list[Nodes]:
    """The nodes of each effective configuration that can change a number.

    Choices and root axes are left out, since the nodes hold what they set. Of the evaluators only those stay that have
    different options among these runs: calling one more evaluator does not make another run.
    """
    every = [
        {name: json.dumps(node, sort_keys=True, default=str) for name, node in identity.relevant_nodes(config).items()}
        for config in configs
    ]
    evaluators = {text: json.loads(text) for text in dict.fromkeys(nodes.get("eval", "{}") for nodes in every)}
    different = differing([*evaluators.values()])
    kept = {
        text: json.dumps({name: options for name, options in node.items() if name in different})
        for text, node in evaluators.items()
    }
    return [{**nodes, "eval": kept[nodes["eval"]]} if "eval" in nodes else nodes for nodes in every]


def settings_of(nodes: Nodes) -> Flat:
    """All flat settings of one run."""
    return {key: value for name, text in nodes.items() for key, value in _flat(name, text).items()}


def identity_of(nodes: Nodes, without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Equal for runs whose settings are equal, seeds and the keys `without` left out."""
    return tuple(f"{name} {_identity(name, nodes[name], without)}" for name in sorted(nodes))


@lru_cache(10_000)
def _flat(name: str, text: str) -> Flat:
    return flatten(json.loads(text), name)


@lru_cache(10_000)
def _identity(name: str, text: str, without: tuple[str, ...]) -> str:
    kept = {key: value for key, value in _flat(name, text).items() if not _is_seed(key) and key not in without}
    return canonical(kept)


def names_of_content(configs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The mark of a content, as in `nodes_of` -> its name: as many of the last parts of its path as distinguish it from
    the others, with the hash where different contents have had the same path."""
    paths: dict[str, dict[str, PurePath]] = {}  # option -> content -> path
    for config in configs:
        for key, found in (config.get("content") or {}).items():
            path = PurePath(str(identity.value_at(config, key)))
            paths.setdefault(key, {}).setdefault(identity.content_mark(found), path)
    names = {}
    for of_option in paths.values():
        for mark, path in of_option.items():
            others = [other for content, other in of_option.items() if content != mark]
            parts = path.relative_to(path.anchor).parts
            tails = ("/".join(parts[-count:]) for count in range(1, len(parts) + 1))
            name = next((tail for tail in tails if not any(f"/{other}".endswith(f"/{tail}") for other in others)), None)
            names[mark] = name or f"{path.name} ({mark.rpartition(' ')[2][:8]})"
    return names


def with_names(flat: Flat, names: Mapping[str, str]) -> Flat:
    """The flat settings with names (from `names_of_content`) in the place of content."""
    return {key: names.get(value, value) if isinstance(value, str) else value for key, value in flat.items()}


def flatten(value: Any, prefix: str = "") -> Flat:
    """Nested mappings as one with dotted keys. Lists are values; an empty mapping is the value {}."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    flat: Flat = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def canonical(value: Any) -> str:
    """Equal texts for equal values; 1e4 and 10000 are one number."""
    if value is None or isinstance(value, str | int | float):
        return repr(identity.canonical(value))
    return json.dumps(identity.canonical(value), sort_keys=True, default=str)


def differing(settings: Sequence[Mapping[str, Any]], missing_differs: bool = False) -> list[str]:
    """The keys that have several values, without seeds; with `missing_differs`, a missing key is a value too."""
    keys = dict.fromkeys(key for one in settings for key in one if not _is_seed(key))
    differ = []
    for key in keys:
        values = {canonical(one[key]) if key in one else "" for one in settings if missing_differs or key in one}
        if len(values) > 1:
            differ.append(key)
    return differ


def places_of(values: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    """The places of each distinct value."""
    places: dict[Hashable, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return places


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2] == "seed"  # data.split_seed belongs to the data


def choices_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Group -> choice (a list joined by +), of the groups that can name a run."""
    return {
        str(group): "+".join(map(str, choice)) if isinstance(choice, list | tuple) else str(choice)
        for group, choice in config["choices"].items()
        if group_of(str(group), config).label != "never" and choice is not None
    }


def axes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The root axes that the configuration uses, without the seed."""
    return {k: v for k, v in config.items() if not isinstance(v, Mapping) and k not in ("overrides", "seed")}
