"""Settings of runs as flat keys (``attention.kv_dim``), and short labels from those in which runs differ."""

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from newllm.config import identity
from newllm.config.catalog import Catalog, shipped
from newllm.config.groups import group_of, groups

Flat = dict[str, Any]
Nodes = dict[str, str]  # name of a node -> its content as JSON

SEPARATOR = " · "

_FIRST = [group for group in groups().values() if group.label == "first"]
# Groups whose choices need no group name before them; the parts of the model come before the model.
NAMED_BY_VALUE = [group.name for group in sorted(_FIRST, key=lambda group: group.part_of is None)]
# Options that hold a path; only its last part is compared.
_FOLDERS = {f"{group.name}.{key}" for group in groups().values() for key, kind in group.paths.items() if kind != "name"}


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
    return flat_node(name, json.loads(text))


@lru_cache(10_000)
def _identity(name: str, text: str, without: tuple[str, ...]) -> str:
    kept = {key: value for key, value in _flat(name, text).items() if not _is_seed(key) and key not in without}
    return canonical(kept)


def flat_node(name: str, node: Mapping[str, Any]) -> Flat:
    """The flat settings of a node. Folders count by their names, wherever they lie."""
    flat = flatten(node, name)
    return {key: Path(v).name if key in _FOLDERS and isinstance(v, str) else v for key, v in flat.items()}


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


@cache
def _axis_order() -> list[str]:
    return list(Catalog((shipped(),)).axes)


def name_groups(configs: Sequence[Mapping[str, Any]], flats: Sequence[Flat]) -> tuple[list[str], list[dict[str, Any]]]:
    """A label for each configuration, such as ``alibi · mla · kv_dim 64``, and its values of the keys that differ.

    flats: the flat settings of each configuration. A label has every choice in which any two differ, and every axis
    with several values among those that use it; equal labels get the options in which they differ as well. The keys
    that differ are these choices and axes, and the options with several values, except options that an axis of the same
    name sets.
    """
    choices, axes = [choices_of(config) for config in configs], [axes_of(config) for config in configs]
    choice_names = dict.fromkeys([*NAMED_BY_VALUE, *(name for one in choices for name in one)])
    choice_keys = [name for name in choice_names if len({one.get(name) for one in choices}) > 1]
    order = {name: place for place, name in enumerate(_axis_order())}
    axis_keys = sorted(differing(axes), key=lambda name: order.get(name, len(order)))
    option_keys = [key for key in differing(flats) if key.rpartition(".")[2] not in ("_target_", *axis_keys)]
    differences, parts = [], []
    for choice, axis, flat in zip(choices, axes, flats, strict=True):
        sources = ((choice, choice_keys), (axis, axis_keys), (flat, option_keys))
        differences.append({key: source.get(key) for source, keys in sources for key in keys})
        parts.append([_choice_text(name, choice[name]) for name in choice_keys if _has_name(name, choice.get(name))])
        parts[-1] += [f"{name} {value_text(axis[name])}" for name in axis_keys if axis.get(name) is not None]
    for places in places_of(map(tuple, parts)).values():
        if len(places) > 1:
            _add_options([parts[place] for place in places], [flats[place] for place in places])
    if len(parts) == 1 and not parts[0]:
        parts = [[choices[0][name] for name in NAMED_BY_VALUE if _has_name(name, choices[0].get(name))][:2]]
    rest = "as trained" if "evaluated" in choice_keys else "the others"
    return _number_equal([SEPARATOR.join(part) or rest for part in parts]), differences


def labels_by(by: Sequence[str], values: Sequence[Sequence[Any]], choices: Sequence[str]) -> list[str]:
    """Labels of groups by the keys `by`, from the values of each group. choices: the keys that are choices."""
    short = short_keys(by)

    def part(key: str, value: Any) -> str:
        if value is None:
            return "as trained" if key == "evaluated" else f"no {short[key]}"
        return _choice_text(key, value) if key in (*choices, "evaluated") else f"{short[key]} {value_text(value)}"

    return _number_equal([SEPARATOR.join(map(part, by, row)) for row in values])


def _choice_text(group: str, choice: Any) -> str:
    return str(choice) if group in NAMED_BY_VALUE else f"{group} {choice}"


def value_text(value: Any) -> str:
    """A setting as one would type it: 10000 for 1e4, [0,2] for a list."""
    if isinstance(value, Mapping):
        return ",".join(f"{key} {value_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(value_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e7 else f"{value:g}"
    return "null" if value is None else str(value)


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its last part, or the whole key where two keys end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def _has_name(group: str, choice: str | None) -> bool:
    """False for "none" where the name of the model already tells that it has no encoding or attention."""
    return choice is not None and not (group in NAMED_BY_VALUE and choice == "none")


def _add_options(parts: Sequence[list[str]], flats: Sequence[Flat]) -> None:
    """Add options to equal labels; the class of a node only where no other option differs."""
    keys = differing(flats, missing_differs=True)
    short = short_keys([key for key in keys if not key.endswith("_target_")] or keys)
    for part, flat in zip(parts, flats, strict=True):
        part += [f"{name} {value_text(flat[key])}" if key in flat else f"no {name}" for key, name in short.items()]


def _number_equal(texts: list[str]) -> list[str]:
    """Number equal texts, so that a label always means one group."""
    times, seen, named = Counter(texts), Counter[str](), []
    for text in texts:
        seen[text] += 1
        named.append(f"{text} ({seen[text]})" if times[text] > 1 else text)
    return named
