"""The identity of a configuration, however it was typed: effective form, signature, names of folders."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.axes import axes, nodes, used_axes
from newllm.config.catalog import plain
from newllm.config.content import content_hash
from newllm.config.groups import Group, groups
from newllm.errors import ConfigError

SCHEMA = 1  # incremented when the same configuration comes to produce other numbers
ABSENT = "absent"
SHARED_LENGTH = 30  # characters in the names of a sweep's runs for what does not vary

HashOf = Callable[[str, Sequence[str]], str | None]  # path, patterns -> hash of the files read there


def effective(cfg: DictConfig) -> dict[str, Any]:
    """Resolved group nodes, used axes, choices and overrides as plain sorted data: the config.yaml of a run.

    Axes that no node refers to are left out, since they have no effect on the run.
    """
    unresolved = plain(cfg)
    # A frozen configuration has values instead of references, and only the axes that are used.
    kept = {
        *nodes(unresolved),
        *(used_axes(unresolved) or axes(unresolved)),
        "choices",
        "overrides",
        "groups",
        "content",
    }
    return sorted_keys({key: value for key, value in resolved(cfg).items() if key in kept})


def with_content(config: Mapping[str, Any], hash_of: HashOf = content_hash) -> dict[str, Any]:
    """The effective configuration with the key `content`: dotted option -> hash of the files that are read there.

    A hash that is there already stays, so that a stored configuration tells what its run has read. Options with no file
    to read, as a name on the hub, have none.
    """
    content = dict(config.get("content") or {})
    for key, path, patterns in places(config):
        if key not in content and (found := hash_of(path, patterns)):
            content[key] = found
    rest = {key: value for key, value in config.items() if key != "content"}
    return {**rest, "content": content} if content else rest


def changed_content(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Option and path of what is read there and has changed since its hash was put into the configuration."""
    known = config.get("content") or {}
    found = [(key, path, content_hash(path, patterns)) for key, path, patterns in places(config) if key in known]
    return [(key, path) for key, path, now in found if now is not None and now != known[key]]


def places(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Dotted option, path, and the patterns of the files read there, of every option that is a path."""
    for group in groups(config).values():
        node = config.get(group.name) or {}
        for option, patterns in group.paths.items():
            if isinstance(path := node.get(option), str) and patterns and option not in group.idle:
                yield f"{group.name}.{option}", path, patterns


def resolved(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The plain content with its references resolved. Raises ConfigError."""
    try:
        whole = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
        return plain(whole, resolve=True)
    except OmegaConfBaseException as error:
        raise unresolved(error) from error


def unresolved(error: OmegaConfBaseException) -> ConfigError:
    """A value is no valid reference, or refers to what is not there."""
    key = getattr(error, "full_key", None) or "the configuration"
    return ConfigError(f"{key} can't be resolved: {str(error).splitlines()[0].rstrip('.')}.")


def signature(cfg: DictConfig | Mapping[str, Any], hash_of: HashOf = content_hash) -> str:
    """8 hex digits that identify everything that may change a trained weight; equal for equal runs, however typed.

    Takes a composed configuration or an effective one. It leaves out choices and axes (their effect is in the nodes),
    the options that conf/groups.yaml declares to change no number, and evaluators, which a finished run can be given.
    Text, tokenizers and weights that are read count by their content: by `hash_of` where the configuration does not
    have it.
    """
    relevant = _trained_nodes(with_content(_plain(cfg), hash_of))
    text = json.dumps([SCHEMA, canonical(relevant)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def stored_signature(config: Mapping[str, Any]) -> str:
    """The signature of a run's stored configuration, by the content that it says its run has read; opens no file."""
    return signature(config, hash_of=lambda path, patterns: None)


def slug(cfg: DictConfig | Mapping[str, Any], varied: Mapping[str, str] | None = None) -> str:
    """A short, readable and safe file name: choices, then overridden values (axes first), then the seed.

    ``nano-alibi-mla-stdlib-slope0.125-kv_dim64-s42``; at most 80 characters; values that do not fit are left out.
    Takes a composed configuration or an effective one. varied: of a run of a sweep, see `varied_parts`; these come
    first and are never left out, and the other values are equal in the names of all its runs.
    """
    config = _plain(cfg)
    named = ("experiment", *(group.name for group in groups(config).values() if group.label == "first"))
    chosen = [config["choices"].get(group) for group in named]
    parts = [safe_name(str(option)) for option in chosen if option and option != "none"]
    seed = f"-s{config['seed']}" if "seed" in config else ""
    keys = dict.fromkeys(str(line).partition("=")[0] for line in config["overrides"])
    axes = [key for key in keys if key in config and not isinstance(config[key], dict) and key != "seed"]
    identifying = {group.name for group in groups(config).values() if group.numbers and group.trained}
    options = [key for key in keys if "." in key and key.partition(".")[0] in identifying]
    shared = 0
    parts += (varied or {}).values()
    for key in (*axes, *options):
        if varied is not None and key in varied:
            continue
        part = safe_name(key.rpartition(".")[2] + _word(value_at(config, key)))
        shared += len(part) + 1
        fits = len("-".join([*parts, part])) + len(seed) <= 80 if varied is None else shared <= SHARED_LENGTH
        if fits and part not in parts:
            parts.append(part)
    return "-".join(parts) + seed


def varied_parts(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """For each effective configuration of a sweep: key -> part of the run's name, of the keys that vary in the sweep.

    Choices are in names anyway if their group's label comes first. Different values have different parts:
    ``tokenizer_a`` and ``tokenizer_b`` for a/tokenizer and b/tokenizer.
    """
    parts: list[dict[str, str]] = [{} for _ in configs]
    if not configs:
        return parts
    known = {group.name: group for group in groups(configs[0]).values()}
    typed = dict.fromkeys(str(line).partition("=")[0] for config in configs for line in config["overrides"])
    for key in typed:
        group = known.get(key.partition(".")[0])
        if key in ("seed", "experiment") or (group and not (group.numbers and group.trained)):
            continue
        if group and key == group.name and group.label == "first":
            continue
        values = [
            config["choices"].get(key) if group and key == group.name else value_at(config, key) for config in configs
        ]
        words = _distinct_words({json.dumps(canonical(value), sort_keys=True): value for value in values})
        if len(words) > 1:
            for part, value in zip(parts, values, strict=True):
                if value is not None:
                    word = words[json.dumps(canonical(value), sort_keys=True)]
                    joint = "_" if word[:1].isalpha() else ""
                    part[key] = safe_name(key.rpartition(".")[2] + joint + word)[:60]
    return parts


def _distinct_words(values: Mapping[str, Any]) -> dict[str, str]:
    """Text of each value -> a word that no other value has: of paths the part that differs; else the whole value."""
    words = {text: _word(value) for text, value in values.items()}
    if len({*words.values()}) == len(words):
        return words
    if all(isinstance(value, str) for value in values.values()):
        components = {text: Path(value).parts[::-1] for text, value in values.items()}
        for place in range(max(map(len, components.values()))):
            words = {text: (*names, "")[min(place, len(names))] for text, names in components.items()}
            if len({*words.values()}) == len(words):
                return words
    exact = {text: str(value) for text, value in values.items()}
    if len({safe_name(word)[:40] for word in exact.values()}) == len(exact):
        return exact
    return {text: f"{_word(value)[:30]}_{number}" for number, (text, value) in enumerate(values.items(), 1)}


def folder_name(changed_settings: Sequence[str], cfg: Mapping[str, Any]) -> str:
    """``scaling-yarn-s42-1a2b3c4d``: the settings that an evaluation changed, the seed and the signature."""
    parts = ["-".join(map(safe_name, part.split("=", 1))) for part in changed_settings]
    return f"{'-'.join(parts)[:60].rstrip('-')}-s{cfg['trainer']['seed']}-{signature(cfg)}"


def run_directory(cfg: DictConfig, root: str | Path = "outputs/runs") -> Path:
    """The directory of the run: `hydra.run.dir` if given, else ``<root>/<slug>-<signature>``.

    An existing folder with the same signature and another slug (the same run, typed differently) is reused.
    """
    if cfg.run_dir:
        return Path(cfg.run_dir)
    run_signature = signature(cfg)
    existing = sorted(path for path in Path(root).glob(f"*-{run_signature}") if path.is_dir())
    return existing[0] if existing else Path(root) / f"{slug(cfg)}-{run_signature}"


def differences(a: DictConfig | Mapping[str, Any], b: DictConfig | Mapping[str, Any]) -> list[str]:
    """``key: value in a != value in b`` for every difference that may change a trained weight."""
    return [f"{key}: {one} != {two}" for key, (one, two) in changed(a, b).items()]


def changed(a: DictConfig | Mapping[str, Any], b: DictConfig | Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> value in a, value in b (or `ABSENT`), for every difference that may change a trained weight."""
    one, two = (_flat(_trained_nodes(with_content(_plain(one)))) for one in (a, b))
    keys = [key for key in sorted({*one, *two}) if canonical(one.get(key, ())) != canonical(two.get(key, ()))]
    return {key: (one.get(key, ABSENT), two.get(key, ABSENT)) for key in keys}


def relevant_nodes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes of an effective configuration that may change a number, without options that cannot.

    Groups without a choice are left out. Paths are replaced by their content, where the configuration has it.
    """
    known, content = groups(config), config.get("content") or {}
    left_out = {"choices", "groups", "content", *(group.name for group in known.values() if not group.numbers)}
    relevant: dict[str, Any] = {}
    for key, node in config.items():
        if isinstance(node, Mapping) and node and key not in left_out:
            group = known.get(key) or Group(str(key))
            relevant[str(key)] = {
                option: value
                for option, value in node.items()
                if option not in group.idle and not (option in group.added and value == group.added[option])
            }
    for key, found in content.items():
        group, _, option = key.partition(".")
        if option in relevant.get(group, {}):
            relevant[group][option] = content_mark(found)
    return relevant


def content_mark(found: str) -> str:
    """What stands for a path in comparisons: ``content 1a2b…``."""
    return f"content {found}"


def _trained_nodes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The relevant nodes that may change a trained weight."""
    known = groups(config)
    return {name: node for name, node in relevant_nodes(config).items() if name not in known or known[name].trained}


def _plain(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The effective configuration of a composed one; an effective one is returned unchanged."""
    if not isinstance(cfg, DictConfig):
        return dict(cfg)
    return effective(cfg) if "run_dir" in cfg else resolved(cfg)


def canonical(value: Any) -> Any:
    """The value with whole floats as ints, so that 1e4 and 10000 are equal however YAML read them."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, str | int) or value is None:  # most values; testing for an abstract class is slower
        return value
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    return [canonical(item) for item in value] if isinstance(value, list | tuple) else value


def value_at(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path such as ``pos_encoding.theta``, None if there is none."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _word(value: Any) -> str:
    """A value as part of a file name: 10000 for 1e4, null, the last name of a path."""
    if isinstance(value, Mapping):
        return "_".join(f"{key}{_word(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "_".join(_word(item) for item in value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else Path(str(value)).name


def safe_name(text: str) -> str:
    """The text as a file name: other characters than letters, digits and ``_.+-`` become ``_``; at most 80."""
    return re.sub(r"[^\w.+-]+", "_", text)[:80].strip("_.-") or "_"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    parts = (_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items())
    return {key: item for part in parts for key, item in part.items()}


def sorted_keys(value: Any) -> Any:
    """The same with the keys of all mappings sorted."""
    if isinstance(value, Mapping):
        return {key: sorted_keys(value[key]) for key in sorted(value, key=str)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value
