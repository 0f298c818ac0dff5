"""Short labels of groups, from the choices, axes and options in which their runs differ."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from newllm.analysis.settings import Flat, axes_of, choices_of, differing, places_of
from newllm.config.catalog import Catalog, shipped
from newllm.config.groups import groups

SEPARATOR = " · "

_FIRST = [group for group in groups().values() if group.label == "first"]
# Groups whose choices need no group name before them; the parts of the model come before the model.
NAMED_BY_VALUE = [group.name for group in sorted(_FIRST, key=lambda group: group.part_of is None)]


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
