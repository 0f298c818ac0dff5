"""Short names of groups of runs: the choices and axes in which they differ, options only where these do not do."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from newllm.analysis.settings import Flat, canonical, varying
from newllm.config.groups import group_of, groups

_FIRST = [group for group in groups().values() if group.label == "first"]
# Choices that say by themselves what they are, the parts of the model before the model.
NAMED_BY_VALUE = [group.name for group in sorted(_FIRST, key=lambda group: group.part_of is None)]
SEPARATOR = " · "


def labels(configs: Sequence[Mapping[str, Any]], flats: Sequence[Flat]) -> list[str]:
    """A label for each of some different configurations, such as ``alibi · mla · kv_dim 64``.

    Every choice in which any two differ is part of it, and every axis that has several values among those that use
    it; where two labels come out equal, the options in which these two differ are added.
    """
    chosen = [choices_of(config) for config in configs]
    names = differing_choices(chosen)
    parts = [[say_choice(name, one[name]) for name in names if _says(name, one.get(name))] for one in chosen]
    axes = [axes_of(config) for config in configs]
    for name in differing_axes(axes):
        for part, used in zip(parts, axes, strict=True):
            if used.get(name) is not None:
                part.append(_named(name, used[name]))
    _tell_apart(parts, flats)
    if len(parts) == 1 and not parts[0]:
        parts = [[chosen[0][name] for name in NAMED_BY_VALUE if _says(name, chosen[0].get(name))][:2]]
    rest = "as trained" if "evaluated" in names else "the others"
    return _numbered([SEPARATOR.join(part) or rest for part in parts])


def labels_by(by: Sequence[str], values: Sequence[Sequence[Any]], choices: Sequence[str]) -> list[str]:
    """Labels of groups made by the keys `by`, from the values of each group; `choices`: which of the keys are."""
    short = short_keys(by)

    def part(key: str, value: Any) -> str:
        if value is None:
            return "as trained" if key == "evaluated" else f"no {short[key]}"
        return say_choice(key, value) if key in (*choices, "evaluated") else _named(short[key], value)

    return _numbered([SEPARATOR.join(map(part, by, row)) for row in values])


def choices_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Group -> choice (a list joined by +), without the groups that name nothing."""
    return {
        str(group): "+".join(map(str, choice)) if isinstance(choice, list | tuple) else str(choice)
        for group, choice in config["choices"].items()
        if group_of(str(group), config).label != "never" and choice is not None
    }


def axes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The root axes that the configuration uses, the seed left out."""
    return {k: v for k, v in config.items() if not isinstance(v, Mapping) and k not in ("overrides", "seed")}


@cache
def _axis_order() -> tuple[str, ...]:
    from newllm.config.catalog import Catalog, shipped

    return tuple(Catalog((shipped(),)).axes)


def differing_choices(chosen: Sequence[Mapping[str, str]]) -> list[str]:
    names = dict.fromkeys([*NAMED_BY_VALUE, *(name for one in chosen for name in one)])
    return [name for name in names if len({one.get(name) for one in chosen}) > 1]


def differing_axes(axes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Axes with at least two values among the configurations that use them, in the order of train.yaml."""
    found = differing(axes)
    return [name for name in _axis_order() if name in found] + [name for name in found if name not in _axis_order()]


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys with at least two values among those that have them."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({canonical(one[key]) for one in settings if key in one}) > 1]


def _says(group: str, choice: str | None) -> bool:
    """Is there a choice to name? That a model has no encoding or attention, the model's own name says."""
    return choice is not None and not (group in NAMED_BY_VALUE and choice == "none")


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


def _named(name: str, value: Any) -> str:
    return f"{name} {say(value)}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its last part, or the whole key where another key ends alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def _tell_apart(parts: list[list[str]], flats: Sequence[Flat]) -> None:
    """Add options to those parts that are equal. The class behind a node comes last, as it is rarely set by hand."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, part in enumerate(parts):
        alike.setdefault(tuple(part), []).append(place)
    for places in alike.values():
        if len(places) == 1:
            continue
        keys = varying([flats[place] for place in places])
        options = [key for key in keys if not key.endswith("_target_")] or keys
        short = short_keys(options)
        for place in places:
            flat = flats[place]
            parts[place] += [_named(short[key], flat[key]) if key in flat else f"no {short[key]}" for key in options]


def _numbered(texts: list[str]) -> list[str]:
    """Equal ones get numbers, so that a label always means one group."""
    times, seen = Counter(texts), Counter[str]()
    named = []
    for text in texts:
        seen[text] += 1
        named.append(f"{text} ({seen[text]})" if times[text] > 1 else text)
    return named
