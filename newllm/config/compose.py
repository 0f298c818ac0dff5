"""From overrides to configurations, one by one or many at once; used by commands, notebooks and tests alike.

Hydra composes the choices; newllm sets the values afterwards, so that runs with equal choices are composed only once.
Names are checked here against the YAML files, without importing torch; newllm.config.values checks values, with it.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from newllm.config.axes import nodes, referenced, refuse_unused_axes, unused, used_axes
from newllm.config.catalog import REFERENCE, Catalog, plain, references, shipped, yaml_error
from newllm.config.groups import group_of, read
from newllm.config.identity import resolved, sorted_keys, unresolved
from newllm.config.overrides import Overrides, parse, parse_line
from newllm.config.values import check_values, signature_of, unknown_option
from newllm.errors import ConfigError
from newllm.labels import LABELS
from newllm.suggest import did_you_mean, nearest
from newllm.trust import name_packages_of, use_folder

NAME_BYTES, PATH_BYTES = 255, 3800  # Linux's limits, with room for the files inside
_VALUE = "the value"  # a key that no configuration has

Plain = dict[str, Any]  # unresolved: references are strings such as ``${theta}``


class NoSuchOption(ConfigError):
    """The run's choice has no such option; another one may have it."""


@dataclass(frozen=True)
class Composed:
    """The composition of a command line, plain and unresolved.

    tree: nodes and axes of the run, the options of a sweep at `sweep` and the launcher at `hydra.launcher`.
    choices: group -> option, a list for eval. dirs: hydra.run.dir if given, and hydra.sweep.dir, with their references.
    """

    tree: Plain
    choices: dict[str, Any]
    dirs: Mapping[str, Any]

    @property
    def run_dir(self) -> str | None:
        """The directory of the run if it is given. Raises ConfigError."""
        return _folder("hydra.run.dir", self.dirs["run"], self.tree) if "run" in self.dirs else None

    @property
    def sweep_dir(self) -> str:
        return _folder("hydra.sweep.dir", self.dirs["sweep"], self.tree)

    @property
    def run(self) -> Plain:
        return {key: value for key, value in self.tree.items() if key not in ("sweep", "hydra")}


def compose(
    overrides: Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    unused_axes: bool = False,
    check: bool = True,
) -> DictConfig:
    """The configuration that `overrides` (as on the command line) describe.

    ::

        cfg = newllm.compose(["pos_encoding=alibi", "attention=mla", "kv_dim=64"])

    Groups, choices, axes and names of options are checked against the YAML files, and with `check` values against the
    types of the constructors, most of which import torch. Besides the group nodes and the root axes, the configuration
    has the keys `choices` (group -> option, a list for eval, including `experiment`), `overrides` (as given, without
    ``+``), `run_dir` (`hydra.run.dir` if given, else null) and, if the user's folder has a groups.yaml, `groups`. It
    does not contain sweep and launcher options.

    config_dir: a folder of further YAML files, laid out like conf/.
    unused_axes: accept axes that the chosen groups do not use (in a sweep, other runs may use them).

    Raises ConfigError: one sentence on what was wrong, what was expected and what to type instead.
    """
    given = parse(overrides, catalog_for(config_dir))
    composed = with_values(composed_choices(given), given)
    about = {"choices": composed.choices, "overrides": given.of_run(), "run_dir": composed.run_dir}
    config = {**composed.run, **about, **_user_groups(given.catalog)}
    if not unused_axes:
        refuse_unused_axes(config, given)
    try:
        cfg = OmegaConf.create(config, flags={"struct": True})
    except OmegaConfBaseException as error:
        raise unresolved(error) from error
    return check_values(cfg) if check else cfg


@dataclass(frozen=True)
class Job:
    """One run of many: its overrides, its effective configuration, and the given keys that have no effect on it: axes
    that it does not use and options that its choices do not have."""

    lines: tuple[str, ...]
    config: dict[str, Any]
    unused: tuple[str, ...]


def compose_many(jobs: Sequence[Sequence[str]], *, config_dir: str | Path | None = None) -> list[Job]:
    """The runs that these lists of overrides describe, each equal to `effective(compose(overrides))`.

    Takes seconds for thousands: Hydra runs once for each set of choices. An axis that a run does not use is left out of
    its overrides, and so is an option of a group that its choice does not have. Runs share equal nodes. Raises
    ConfigError for wrong names, also for an option that no run has; values are not checked here.
    """
    catalog = catalog_for(config_dir)
    user_groups = _user_groups(catalog)
    by_choices: dict[tuple[str, ...], tuple[Composed, dict[str, Any]]] = {}  # compositions, and their resolved nodes
    composed_jobs = []
    refused: dict[str, list[NoSuchOption]] = {}
    for lines in jobs:
        given = parse(lines, catalog)
        choices = tuple(given.choices())
        if choices not in by_choices:
            by_choices[choices] = composed_choices(given), {}
        composed, resolved_nodes = by_choices[choices]
        missing: dict[str, NoSuchOption] = {}
        run = with_values(composed, given, missing).run
        config: dict[str, Any] = {}
        for name in (*used_axes(run), *nodes(run)):
            context = referenced(run, run[name])
            content = repr((name, run[name], context))
            if content not in resolved_nodes:
                resolved_nodes[content] = sorted_keys(resolved({**context, name: run[name]})[name])
            config[name] = resolved_nodes[content]
        unused_keys = (*unused(run, given), *missing)
        for key, error in missing.items():
            refused.setdefault(key, []).append(error)
        kept = [line for line in given.of_run() if line.partition("=")[0] not in unused_keys]
        config |= {**user_groups, "choices": composed.choices, "overrides": kept}
        typed = tuple(override.input_line or "" for override in given.parsed)
        composed_jobs.append(Job(typed, dict(sorted(config.items())), unused_keys))
    for errors in refused.values():
        if len(errors) == len(jobs):  # by the choice that has the most similar option, if one has
            raise next((error for error in errors if "did you mean" in str(error)), errors[0])
    return composed_jobs


def catalog_for(config_dir: str | Path | None = None) -> Catalog:
    """The choices of the shipped folder and of the user's."""
    if config_dir is None:
        use_folder(None)
        return Catalog((shipped(),))
    if not os.path.isdir(config_dir):
        raise ConfigError(f"--config-dir {config_dir}: no such folder; expected one laid out like conf/.")
    folder = Path(config_dir).resolve()
    catalog = Catalog((folder, shipped()))
    if both := catalog.hidden_file():
        raise ConfigError(f"{both} is not read, since newllm has a file of that name; rename yours.")
    use_folder(folder, catalog.users_files())
    return catalog


def labels_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The labels in a composed configuration that have a value: name, tags, notes."""
    found = {key: config.get(key) for key in LABELS}
    return {key: list(value) if key == "tags" else str(value) for key, value in found.items() if value}


def _user_groups(catalog: Catalog) -> dict[str, Any]:
    """The key `groups` of a configuration, with the entries of the user's groups.yaml; {} without one."""
    entries = {name: entry for folder in catalog.folders[:-1] for name, entry in read(folder).items()}
    return {"groups": entries} if entries else {}


def composed_choices(given: Overrides) -> Composed:
    """The choices in `given` composed by Hydra; values are not set yet."""
    catalog = given.catalog
    cfg = _by_hydra([*catalog.search_path, *given.choices()])
    chosen, launcher = plain(cfg.hydra.runtime.choices, resolve=True), plain(cfg.hydra.launcher, resolve=True)
    dirs = {name: plain(cfg.hydra[name])["dir"] for name in ("run", "sweep")}
    if "hydra.run.dir" not in given.keys and dirs["run"] == catalog.run_dir:
        del dirs["run"]
    if cfg.hydra.sweeper.get("params"):
        raise ConfigError(
            "hydra.sweeper.params are of Hydra's own sweeper; give the values as in newllm train -m lr=1e-3,2e-3, or "
            "in a file as sweep.grids: [{lr: [1e-3, 2e-3]}]."
        )
    with open_dict(cfg):
        del cfg["hydra"]
    tree = {**plain(cfg), "hydra": {"launcher": launcher}}
    name_packages_of(tree)
    known = {*catalog.axes, *LABELS, *catalog.groups, *references(tree), "sweep", "hydra"}
    if unknown := [key for key in tree if key not in known]:
        raise _unknown_root(unknown[0], tree, catalog)
    choices = {group: option for group, option in chosen.items() if not group.startswith("hydra/")}
    for group, option in choices.items():
        file = catalog.folders[0] / group / f"{option}.yaml"
        named = group not in catalog.groups or group == "experiment" or option == "none" or "_target_" in tree[group]
        if not named and len(catalog.folders) > 1 and file.is_file():
            raise ConfigError(f"{file} has no _target_; it must name the class of {group}={option}.")
    for group in catalog.lists:  # Hydra does not record them
        # An experiment may set options of a choice that the command line has left out.
        options = {
            name: node
            for name, node in (tree.get(group) or {}).items()
            if "_target_" in node or name not in catalog.groups[group]
        }
        tree[group], choices[group] = options, [name for name, node in options.items() if "_target_" in node]
    for group in given.keys:
        if group in catalog.groups and isinstance(tree.get(group), dict) and group not in catalog.lists:
            tree[group] = tree[group] if "_target_" in tree[group] else {}
    composed = Composed(tree, dict(sorted(choices.items())), dirs)
    for group in catalog.groups:
        for name, node in (tree.get(group) or {}).items():
            if "_target_" not in (node if group in catalog.lists else tree[group]):
                value_of_key(f"{group}.{name}", composed, catalog)  # raises ConfigError
    return composed


def with_values(composed: Composed, given: Overrides, missing: dict[str, NoSuchOption] | None = None) -> Composed:
    """The same with the values in `given`; unchanged nodes are shared. Raises ConfigError for a wrong name.

    missing: collects the options that the choices do not have, instead of an error.
    """
    tree = composed.tree
    # The YAML does not list the options of a new class.
    unlisted = tuple(key.removesuffix("_target_") for key in given.keys if key.endswith("._target_"))
    for override in given.values:
        key, value = override.key_or_group, override.value()
        name_packages_of({key.rpartition(".")[2]: value})
        text = key.endswith("._target_")
        if not key.startswith(unlisted):
            try:
                current = value_of_key(key, composed, given.catalog)
            except NoSuchOption as error:
                if missing is None:
                    raise
                missing[key] = error
                continue
            if isinstance(current, dict) and "_target_" in current and not isinstance(value, dict):
                example = next((f"{key}.{name}" for name in current if name != "_target_"), key)
                raise ConfigError(f"{key} takes no value of its own, but options such as {example}=VALUE.")
            text = isinstance(_default(current, tree), str)
        value = _with_environment(key, value, text)
        group, _, option = key.partition(".")
        if option in group_of(group).paths and type(value) is int:
            value = str(value)  # a folder called 42
        if unknown := references(value) - {*tree}:
            raise ConfigError(f"{key}={value} can't be resolved; {did_you_mean(min(unknown), tree)}.")
        tree = _with(tree, key.split("."), value, tree)
    return replace(composed, tree=tree)


def _with_environment(key: str, value: Any, text: bool) -> Any:
    """`value` with ``${oc.env:LR}`` and the like replaced by what they stand for, at any depth.

    References to the configuration stay. text: the option holds text; otherwise 0.002 in the environment is a number.
    Raises ConfigError.
    """
    if isinstance(value, list):
        return [_with_environment(key, item, text) for item in value]
    if isinstance(value, dict):
        return {name: _with_environment(key, item, text) for name, item in value.items()}
    if not isinstance(value, str) or "${" not in value or references(value):
        return value
    found = _resolve(key, value, {})
    if text or not isinstance(found, str):
        return found
    try:
        return parse_line(f"x={found}").value()
    except ValueError:
        return found


def _folder(key: str, value: Any, tree: Plain) -> str:
    """The folder that `hydra.run.dir` or `hydra.sweep.dir` names, with its references resolved. Raises ConfigError."""
    found = _resolve(key, value, tree) if isinstance(value, str) else value
    text = "" if found is None or isinstance(found, dict | list) else str(found).strip()
    if not text or text == "???" or "\0" in text:
        raise ConfigError(f"{key}={'null' if found is None else found}: expected the name of a folder.")
    folder = Path(text).expanduser()
    parts = [os.fsencode(part) for part in folder.parts]
    if max(map(len, parts), default=0) > NAME_BYTES or sum(map(len, parts)) > PATH_BYTES:
        raise ConfigError(
            f"{key}={text[:40]}… is too long: a folder's name has at most {NAME_BYTES} bytes and its path {PATH_BYTES}."
        )
    return str(folder)


def _resolve(key: str, value: str, tree: Plain) -> Any:
    """`value` with its references to `tree` and to the environment resolved. Raises ConfigError."""
    if "${" not in value:
        return value
    try:
        return plain(OmegaConf.create({**tree, _VALUE: value}), resolve=True)[_VALUE]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"{key}={value} can't be resolved ({reason}); type the value itself.") from error


def _with(node: Any, path: Sequence[str], value: Any, root: Plain) -> Any:
    """A copy of `node` with a value set at `path`; everything off the path is shared."""
    if path:
        inner = node if isinstance(node, dict) else {}
        return {**inner, path[0]: _with(inner.get(path[0]), path[1:], value, root)}
    if isinstance(node, dict) and isinstance(value, dict):
        return {**node, **{key: _with(node.get(key), (), part, root) for key, part in value.items()}}
    former = _default(node, root)
    # Equal numbers give equal configurations: 10000 becomes 1e4 if the default is a float.
    if isinstance(former, float) and type(value) is int:
        return float(value)
    if type(former) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return copy.copy(value)


def _default(node: Any, root: Plain) -> Any:
    """A value, or that of the axis to which it refers."""
    axis = REFERENCE.fullmatch(node) if isinstance(node, str) else None
    return root.get(axis[1]) if axis else node


def value_of_key(key: str, composed: Composed, catalog: Catalog) -> Any:
    """The value at `key`, None if it lies inside another value.

    Raises ConfigError if `key` is neither an axis nor an option of a chosen group.
    """
    node: Any = composed.tree
    root, *rest = key.split(".")
    chosen: Any = composed.choices.get(root)
    if root not in node and root not in catalog.groups:
        raise _unknown_root(root, node, catalog)
    if rest and root in (*catalog.axes, *LABELS) and not isinstance(node[root], dict):
        raise ConfigError(f"{key}: {root} is a single value; type {root}=VALUE.")
    if root in catalog.lists and rest[0] not in chosen:
        if rest[0] in catalog.groups[root]:
            names = ",".join([*chosen, rest[0]])
            raise NoSuchOption(f"{root}.{rest[0]} is not among this run's {root}; add it with '{root}=[{names}]'.")
        meant = did_you_mean(rest[0], catalog.groups[root], prefix=f"{root}.")
        raise ConfigError(f"{root}.{rest[0]}: unknown; {meant}.")
    if root in catalog.groups and root not in catalog.lists and "_target_" not in (node.get(root) or {}):
        has = f"{root}={chosen} has no options" if chosen else f"no {root} is chosen"
        raise NoSuchOption(f"{key}: {has}; choose another {root} or leave it out.")
    path = ""
    for part in (root, *rest):
        if not isinstance(node, dict):
            return None
        if part not in node:
            if "_target_" in node:
                _refuse_option(part, node, path, composed.choices.get(path))
            return None
        path, node = f"{path}.{part}".lstrip("."), node[part]
    return node


def _refuse_option(name: str, node: Plain, path: str, choice: Any) -> None:
    """Raises ConfigError for an option that a node's YAML does not list, unless a user's class takes it."""
    target, known = str(node["_target_"]), [option for option in node if option != "_target_"]
    if not target.startswith("newllm."):
        signature = signature_of(target)
        if signature.open or name in signature.options:
            return
        known = list(signature.options)
    owner, handed = f"{path}={choice}" if choice else path, group_of(path.partition(".")[0]).handed
    raise NoSuchOption(str(unknown_option(f"{path}.{name}", owner, known, handed)))


def _unknown_root(key: str, tree: Plain, catalog: Catalog) -> ConfigError:
    homes = [f"{group}.{key}" for group, node in nodes(tree).items() if key in node and "_target_" in node]
    if homes:
        return ConfigError(f"{key} is not a root key; did you mean {homes[0]}?")
    close = nearest(key, [*catalog.axes, *LABELS, *catalog.groups, *catalog.sweep_options])
    meant = f"; did you mean {close}?" if close else ";"
    listed = f"axes are {', '.join(catalog.axes)}; groups are {', '.join(catalog.groups)}"
    return ConfigError(f"{key} is unknown{meant} {listed}.")


def version_base() -> dict[str, str]:
    """The argument version_base for Hydra 1.3; later releases do not take it."""
    import hydra

    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


def _by_hydra(lines: Sequence[str]) -> DictConfig:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None  # set if a Hydra program calls this function
    try:
        with hydra.initialize_config_dir(str(shipped()), job_name="train", **version_base()):
            return hydra.compose("train", list(lines), return_hydra_config=True)
    except yaml.YAMLError as error:
        raise yaml_error(error, "a YAML file") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra's message as one sentence, without its advice to use +, and with the underlying cause.
        cause = error.__cause__ or error.__context__
        message = [*str(error).splitlines(), *(str(cause).splitlines()[:1] if cause else [])]
        end = next((i for i, line in enumerate(message) if line.startswith("Config search path")), len(message))
        kept = [line.strip().rstrip(".:;") for line in message[:end] if line.strip() and "To append" not in line]
        raise ConfigError("the configuration can't be composed: " + "; ".join(kept) + ".") from error
    finally:
        GlobalHydra.instance().hydra = outer
