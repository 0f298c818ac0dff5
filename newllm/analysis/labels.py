"""Settings of runs as flat keys (``attention.kv_dim``), and short labels made of those in which runs differ."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    counting = [identity.counting(config) for config in configs]
    options: dict[str, set[str]] = {}
    found = [{name: json.dumps(node, sort_keys=True, default=str) for name, node in one.items()} for one in counting]
    for text in dict.fromkeys(nodes.get("eval", "{}") for nodes in found):
        for name, value in json.loads(text).items():
            options.setdefault(name, set()).add(canonical(value))
    same = {name for name, values in options.items() if len(values) == 1}

    @cache
    def reduced(text: str) -> str:
        return json.dumps({name: value for name, value in json.loads(text).items() if name not in same})

    return [{name: reduced(text) if name == "eval" else text for name, text in nodes.items()} for nodes in found]


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
    """The same text for equal values; 1e4 and 10000 are one number."""
    if value is None or isinstance(value, str | int | float):
        return repr(identity.canonical(value))
    return json.dumps(identity.canonical(value), sort_keys=True, default=str)


def varying(flats: Sequence[Flat]) -> list[str]:
    """The keys whose values differ among `flats`, or that only some of them have; seeds are left out."""
    keys = dict.fromkeys(key for flat in flats for key in flat if not _is_seed(key))
    return [key for key in keys if len({canonical(flat[key]) if key in flat else "" for flat in flats}) > 1]


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys with at least two values among those that have them."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({canonical(one[key]) for one in settings if key in one}) > 1]


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


def differing_choices(chosen: Sequence[Mapping[str, str]]) -> list[str]:
    names = dict.fromkeys([*NAMED_BY_VALUE, *(name for one in chosen for name in one)])
    return [name for name in names if len({one.get(name) for one in chosen}) > 1]


def differing_axes(axes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Axes with at least two values among the configurations that use them, in the order of train.yaml."""
    found = differing(axes)
    order = _axis_order()
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))


@cache
def _axis_order() -> list[str]:
    return list(Catalog((shipped(),)).axes)


def labels(configs: Sequence[Mapping[str, Any]], flats: Sequence[Flat]) -> list[str]:
    """A label for each of some different configurations, such as ``alibi · mla · kv_dim 64``.

    It has every choice in which any two differ, and every axis that has several values among those that use it. Where
    two labels come out equal, the options in which these two differ are added.
    """
    chosen, axes = [choices_of(config) for config in configs], [axes_of(config) for config in configs]
    names = differing_choices(chosen)
    parts = [[say_choice(name, one[name]) for name in names if _has_name(name, one.get(name))] for one in chosen]
    for name in differing_axes(axes):
        for part, used in zip(parts, axes, strict=True):
            if used.get(name) is not None:
                part.append(f"{name} {say(used[name])}")
    equal: dict[tuple[str, ...], list[int]] = {}
    for place, part in enumerate(parts):
        equal.setdefault(tuple(part), []).append(place)
    for places in equal.values():
        if len(places) > 1:
            _add_options([parts[place] for place in places], [flats[place] for place in places])
    if len(parts) == 1 and not parts[0]:
        parts = [[chosen[0][name] for name in NAMED_BY_VALUE if _has_name(name, chosen[0].get(name))][:2]]
    rest = "as trained" if "evaluated" in names else "the others"
    return _unique([SEPARATOR.join(part) or rest for part in parts])


def labels_by(by: Sequence[str], values: Sequence[Sequence[Any]], choices: Sequence[str]) -> list[str]:
    """Labels of groups made by the keys `by`, from the values of each group; `choices`: which of the keys are."""
    short = short_keys(by)

    def part(key: str, value: Any) -> str:
        if value is None:
            return "as trained" if key == "evaluated" else f"no {short[key]}"
        return say_choice(key, value) if key in (*choices, "evaluated") else f"{short[key]} {say(value)}"

    return _unique([SEPARATOR.join(map(part, by, row)) for row in values])


def say_choice(group: str, choice: Any) -> str:
    return str(choice) if group in NAMED_BY_VALUE else f"{group} {choice}"


def say(value: Any) -> str:
    """A setting as one would type it: 10000 for 1e4, [0,2] for a list."""
    if isinstance(value, Mapping):
        return ",".join(f"{key} {say(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(say, value))}]"
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
    """Tell equal labels apart by options; by the class behind a node only where no other option differs."""
    keys = varying(flats)
    short = short_keys([key for key in keys if not key.endswith("_target_")] or keys)
    for part, flat in zip(parts, flats, strict=True):
        part += [f"{name} {say(flat[key])}" if key in flat else f"no {name}" for key, name in short.items()]


def _unique(texts: list[str]) -> list[str]:
    """Number equal texts, so that a label always means one group."""
    times, seen, named = Counter(texts), Counter[str](), []
    for text in texts:
        seen[text] += 1
        named.append(f"{text} ({seen[text]})" if times[text] > 1 else text)
    return named
