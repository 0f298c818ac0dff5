"""Help on choices: `newllm help attention=mla` shows each option with its default, its type and its comment."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from newllm.config.catalog import Catalog
from newllm.config.compose import composed_choices, value_of_key, with_values
from newllm.config.identity import value_at
from newllm.config.overrides import parse
from newllm.config.values import REQUIRED, expected, shown, signature_of
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean

LAUNCHER = "hydra/launcher"


def explain(words: Sequence[str], catalog: Catalog) -> str:
    """Help on words of a command line: a choice (``attention=mla``) or several, a group, an axis, an option's key.

    Raises ConfigError for a word that is none of them.
    """
    given = parse([word for word in words if "=" in word], catalog, sweep=True)
    bare = [word for word in words if "=" not in word]
    dotted = [word for word in bare if "." in word and word.partition(".")[0] in catalog.groups]
    parts = [_overview(word, catalog) for word in bare if word not in dotted]
    single = [override.input_line or "" for override in given.parsed if not override.is_sweep_override()]
    for group in catalog.lists:  # an option of a choice that is not in the list by default
        names = [word.split(".")[1] for word in dotted if word.startswith(f"{group}.")]
        if names and group not in given.keys:
            single.append(f"{group}=[{','.join(names)}]")
    composed = with_values(composed_choices(parse(single, catalog)), parse(single, catalog), {})
    for word in dotted:
        value_of_key(word.rstrip("."), composed, catalog)  # raises ConfigError
    for key in dict.fromkeys(key.partition(".")[0] for key in (*given.keys, *dotted)):
        swept = [o for o in given.parsed if o.key_or_group == key and o.is_sweep_override()]
        if key == LAUNCHER and not swept:
            name = next(str(override.value()) for override in given.parsed if override.key_or_group == key)
            node = composed.tree["hydra"]["launcher"]
            parts.append(_choice("hydra.launcher", key, name, node, composed.tree, catalog))
        elif key not in catalog.groups or key == "experiment" or swept:
            parts.append(_overview(key, catalog))
        elif key in catalog.lists:
            for name, node in composed.tree[key].items():
                parts.append(_choice(f"{key}.{name}", key, name, node, composed.tree, catalog, dotted))
        else:
            parts.append(
                _choice(key, key, str(composed.choices[key]), composed.tree[key], composed.tree, catalog, dotted)
            )
    return "\n\n".join(parts)


def _overview(word: str, catalog: Catalog) -> str:
    """A group with its choices, or another key with its default, its meaning and the choices that use it."""
    groups = _groups(catalog)
    if names := groups.get(word):
        width = max(map(len, names), default=0)
        lines = [f"  {name:<{width}}  {catalog.describe(word, name)}".rstrip() for name in names]
        example = f"newllm help {word}={names[0]}"
        return "\n".join([f"{word}=", *lines, f"{example} shows the options of a choice."])
    defaults = {**catalog.axes, **catalog.labels, **catalog.sweep_options}
    if word in defaults:
        lines = [f"{word}={shown(defaults[word])}  {catalog.comments.get(word, '')}".rstrip()]
        lines += [f"  used by {group}={', '.join(names)}" for group, names in catalog.users(word).items()]
        return "\n".join(lines)
    raise ConfigError(f"{word}: there is no such choice or key; {did_you_mean(word, [*groups, *defaults])}.")


def _groups(catalog: Catalog) -> dict[str, list[str]]:
    return {**catalog.groups, LAUNCHER: catalog.launchers}


def _choice(path: str, group: str, name: str, node: Any, tree: Any, catalog: Catalog, asked: Sequence[str] = ()) -> str:
    """The options of a choice; of the keys in `asked`, if they name some of its options, only those."""
    title = f"{group}={f'[{name}]' if group in catalog.lists else name}"
    lines = [f"{title}  {catalog.describe(group, name)}".rstrip()]
    if not node or "_target_" not in node:
        return "\n".join([*lines, "  no options"])
    asked = [word for word in asked if word.startswith(f"{path}.") and word != f"{path}."]
    parameters, comments = signature_of(str(node["_target_"])).options, _comments(group, name, catalog)
    rows = []
    for option, value in node.items():
        if option == "_target_" or (asked and not any(f"{word}.".startswith(f"{path}.{option}.") for word in asked)):
            continue
        source = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None  # ${theta}, ${model.bias}
        annotation = parameters[option].annotation if option in parameters else REQUIRED
        kind = "" if annotation is REQUIRED else expected(annotation)
        comment = comments.get(option) or (catalog.comments.get(source[1], "") if source else "")
        about = f"follows {source[1]}" if source else ""
        typed = shown(value_at(tree, source[1]) if source else value)
        rows.append((f"{path}.{option}={typed}", "; ".join(text for text in (kind, about, comment) if text)))
    width = min(40, max((len(row[0]) for row in rows), default=0))
    options = [f"  {key:<{width}}  {about}".rstrip() for key, about in rows]
    return "\n".join([*lines, *(options or ["  no options"])])


def _comments(group: str, name: str, catalog: Catalog) -> dict[str, str]:
    """Option -> its comment in the choice's file, in those it is based on, or in another of the same class."""
    texts = {other: [*catalog.texts(f"{group}/{other}")] for other in _groups(catalog)[group]}
    found: dict[str, str] = {}
    for other in sorted(texts, key=lambda other: other != name):
        if _class_of(texts[other]) == _class_of(texts[name]):
            for text in texts[other]:
                found = {**dict(_commented(text)), **found}
    return found


def _class_of(texts: Sequence[str]) -> str:
    """The first `_target_` in these files."""
    return next((target for text in texts for target in re.findall(r"^_target_: *(\S+)", text, re.MULTILINE)), "")


def _commented(text: str) -> Iterator[tuple[str, str]]:
    """(key, comment) of the lines ``key: value  # comment`` at the top level, with comments that go on below."""
    key = ""
    for line in text.splitlines():
        match = re.match(r"(\w+):(?:[^#'\"]|'[^']*'|\"[^\"]*\")*?\s#\s?(.*)$", line)
        if match:
            key = match[1]
            yield key, match[2].strip()
        elif re.match(r"\w+:", line):
            key = ""
