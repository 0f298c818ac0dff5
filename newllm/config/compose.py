"""compose(): from overrides to a configuration. The single way for commands, notebooks and tests.

Hydra composes the choices; values are set afterwards, by us, so that many runs of equal choices are composed once.
Names are judged here, against the YAML files alone, and no torch is imported; newllm.config.values judges values.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from newllm.config import groups
from newllm.config.axes import OWN_KEYS, nodes, refuse_unused
from newllm.config.catalog import REFERENCE, Catalog, plain, references, shipped
from newllm.config.overrides import Overrides, parse
from newllm.config.values import handed_over, no_option, signature_of
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean, nearest

Plain = dict[str, Any]  # unresolved: references are texts such as ``${theta}``


@dataclass(frozen=True)
class Composed:
    """What the choices and values of a command line come to; plain and unresolved."""

    run: Plain  # group nodes and axes
    choices: dict[str, Any]  # group -> option, a list for eval; `experiment` included
    sweep: Plain  # which runs a sweep has, and how they are done
    launcher: Plain  # what does them
    run_dir: str | None  # hydra.run.dir where it was given
    sweep_dir: str


def compose(
    overrides: Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    unused_axes: bool = False,
) -> DictConfig:
    """The configuration that `overrides` (as on the command line) describe.

    Groups, choices, axes and names of options have been judged by the YAML files. Values are judged by the constructors
    when a run begins, or by `check_values`. Beside the group nodes and the root axes it has keys of its own: `choices`
    (group -> option, a list for eval, `experiment` included), `overrides` (as given, without ``+``), `run_dir`
    (`hydra.run.dir` where that was given, else null) and `groups` where the user's folder has a groups.yaml. Sweeps and
    launchers are no part of it.

    config_dir: a folder of further YAML files, laid out like conf/.
    unused_axes: accept an axis that the chosen groups do not use (in a sweep, where other runs use it).

    Raises ConfigError: one sentence on what was wrong, what was expected and what to type instead.
    """
    given = parse(overrides, catalog_for(config_dir))
    composed = with_values(composed_choices(given, config_dir), given)
    own = {"choices": composed.choices, "overrides": given.of_run(), "run_dir": composed.run_dir}
    config = {**composed.run, **own, **own_groups(given.catalog)}
    if not unused_axes:
        refuse_unused(config, given)
    return OmegaConf.create(config, flags={"struct": True})


def catalog_for(config_dir: str | Path | None = None) -> Catalog:
    """The choices of the shipped folder and of the user's."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder; expected one laid out like conf/.")
    return Catalog((Path(config_dir).resolve(), shipped()) if config_dir else (shipped(),))


def own_groups(catalog: Catalog) -> dict[str, Any]:
    """The key `groups` of a configuration: entries of the user's groups.yaml; nothing without one."""
    own = {name: facts for folder in catalog.folders[:-1] for name, facts in groups.read(folder).items()}
    return {"groups": own} if own else {}


def search_path(config_dir: str | Path | None) -> list[str]:
    """The override that shows the user's folder to Hydra."""
    return [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"] if config_dir else []


def composed_choices(given: Overrides, config_dir: str | Path | None = None) -> Composed:
    """What Hydra makes of the choices in `given`, whose values are not set yet."""
    cfg = _by_hydra([*search_path(config_dir), *given.choices()])
    chosen, launcher = plain(cfg.hydra.runtime.choices, resolve=True), plain(cfg.hydra.launcher, resolve=True)
    with open_dict(cfg):
        hydra = cfg.pop("hydra")
    run, catalog = plain(cfg), given.catalog
    _drop_deselected(run, catalog, given)
    # Hydra's own record leaves out groups that take a list.
    lists = {group: [name for name, node in run[group].items() if "_target_" in node] for group in catalog.lists}
    choices = {group: option for group, option in chosen.items() if not group.startswith("hydra/")} | lists
    composed = Composed(
        run=run,
        choices=dict(sorted(choices.items())),
        sweep=run.pop("sweep"),
        launcher=launcher,
        run_dir=hydra.run.dir if "hydra.run.dir" in given.keys else None,
        sweep_dir=hydra.sweep.dir,
    )
    for key, node in run.items():
        _refuse_unknown(key, composed, catalog)
        if key in catalog.groups and isinstance(node, dict) and "_target_" not in node:
            for name, inner in node.items():
                if not (key in catalog.lists and isinstance(inner, dict) and "_target_" in inner):
                    _refuse_unknown(f"{key}.{name}", composed, catalog)
    return composed


def with_values(composed: Composed, given: Overrides) -> Composed:
    """The same with the values in `given`; nodes that no value touches are shared. ConfigError for a wrong name."""
    if not given.values:
        return composed
    whole: Plain = {**composed.run, "sweep": composed.sweep, "hydra": {"launcher": composed.launcher}}
    targets = [override.key_or_group.removesuffix("._target_") for override in given.values]
    for override in given.values:
        key, value = override.key_or_group, override.value()
        if key == "sweep":
            raise ConfigError(
                "sweep takes no value of its own, but options such as sweep.seeds=3; an experiment's sweep is done "
                "with -m, and without it the experiment is one run."
            )
        if not any(key.startswith(f"{target}.") for target in targets):  # else the new class alone knows its options
            _refuse_unknown(key, composed, given.catalog)
        group, _, option = key.partition(".")
        if option in groups.group_of(group).paths and type(value) is int:
            value = str(value)  # a folder called 42
        unknown = references(value) - {*composed.run}
        if unknown:
            raise ConfigError(f"{key}={value} can't be resolved; {did_you_mean(min(unknown), composed.run)}.")
        whole = _with(whole, key.split("."), value, whole)
    sweep, launcher = whole.pop("sweep"), whole.pop("hydra")["launcher"]
    return Composed(whole, composed.choices, sweep, launcher, composed.run_dir, composed.sweep_dir)


def _with(node: Any, path: Sequence[str], value: Any, root: Plain) -> Any:
    """A copy of `node` with a value put at `path`, which shares all that is not on the path."""
    if path:
        inner = node if isinstance(node, dict) else {}
        return {**inner, path[0]: _with(inner.get(path[0]), path[1:], value, root)}
    if isinstance(node, dict) and isinstance(value, dict):
        for key, one in value.items():
            node = {**node, key: _with(node.get(key), (), one, root)}
        return node
    axis = REFERENCE.fullmatch(node) if isinstance(node, str) else None
    former = root.get(axis[1]) if axis else node
    # 10000 for a default of 1e4 is 1e4, and 1e3 for one of 128 is 1000: one number is one configuration.
    if isinstance(former, float) and type(value) is int:
        return float(value)
    if type(former) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return copy.copy(value)


# --- names ----------------------------------------------------------------------------------------------------------


def _refuse_unknown(key: str, composed: Composed, catalog: Catalog) -> None:
    """ConfigError if `key` names nothing in what was chosen: no axis, no option of a choice that was made."""
    root, *rest = key.split(".")
    run = {**composed.run, "sweep": composed.sweep, "hydra": {"launcher": composed.launcher}}
    if root not in run and root not in catalog.groups:
        raise ConfigError(_unknown_root(root, run, catalog))
    node = run.get(root)
    if not rest:
        known = {*catalog.axes, *catalog.groups, *references(nodes(composed.run)), *OWN_KEYS}
        if root not in known:
            raise ConfigError(_unknown_root(root, run, catalog))
        return
    name, choice = rest[0], composed.choices.get(root)
    if root in catalog.axes and not isinstance(node, dict):
        raise ConfigError(f"{key}: {root} is a single value; type {root}=VALUE.")
    if root in catalog.lists:
        made = node.get(name) if isinstance(node, dict) else None
        if name not in catalog.groups[root]:
            raise ConfigError(f"{root}.{name}: unknown; {did_you_mean(name, catalog.groups[root], prefix=f'{root}.')}.")
        if not isinstance(made, dict) or "_target_" not in made:
            chosen = ",".join([*(choice or []), name])
            raise ConfigError(f"{root}.{name} is not among this run's {root}; add it with {root}=[{chosen}].")
    elif root in catalog.groups and not (isinstance(node, dict) and "_target_" in node):
        has = f"{root}={choice} has no options" if choice else f"no {root} is chosen"
        raise ConfigError(f"{key}: {has}; choose another {root} or leave it out.")
    path = ""
    node = run
    for part in key.split("."):
        if not isinstance(node, dict):
            return
        if part not in node:
            if "_target_" in node:
                _refuse_option(part, node, path, composed.choices.get(path))
            return
        path, node = f"{path}.{part}".lstrip("."), node[part]


def _refuse_option(name: str, node: Mapping[str, Any], path: str, choice: Any) -> None:
    """ConfigError for an option that the YAML of a node does not list; that of a user's class may leave some out."""
    target, known = str(node["_target_"]), [option for option in node if option != "_target_"]
    if not target.startswith("newllm."):
        signature = signature_of(target)
        if signature.open or name in signature.options:
            return
        known = list(signature.options)
    of = f"{path}={choice}" if choice else path
    if name in groups.group_of(path.partition(".")[0]).handed:
        raise ConfigError(handed_over(f"{path}.{name}", of))
    raise ConfigError(no_option(f"{path}.{name}", of, known))


def _unknown_root(key: str, run: Mapping[str, Any], catalog: Catalog) -> str:
    homes = [f"{name}.{key}" for name, node in nodes(run).items() if key in node and "_target_" in node]
    if homes:
        return f"{key} is no root key; did you mean {homes[0]}?"
    close = nearest(key, [*catalog.axes, *catalog.groups, *catalog.sweep_options])
    meant = f"; did you mean {close}?" if close else ";"
    return f"{key} is unknown{meant} axes are {', '.join(catalog.axes)}; groups are {', '.join(catalog.groups)}."


def _drop_deselected(run: Plain, catalog: Catalog, given: Overrides) -> None:
    """What an experiment says of a part that the command line has left out: of an evaluator, or of a group by none."""
    for group in catalog.lists:
        for name in [name for name, node in run[group].items() if "_target_" not in node]:
            if name in catalog.groups[group]:
                del run[group][name]
    for group in catalog.defaults:
        if group in given.keys and isinstance(run.get(group), dict) and "_target_" not in run[group]:
            run[group] = {} if group not in catalog.lists else run[group]


# --- Hydra ----------------------------------------------------------------------------------------------------------


def _by_hydra(lines: Sequence[str]) -> DictConfig:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # set where a Hydra program calls us
    try:
        with hydra.initialize_config_dir(str(shipped()), job_name="train", version_base=None):
            return hydra.compose("train", list(lines), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_one_sentence(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def _one_sentence(error: BaseException) -> str:
    """Hydra's many lines in one, without its advice to use +, and with the cause it hides."""
    cause = error.__cause__ or error.__context__
    lines = [*str(error).splitlines(), *(str(cause).splitlines()[:1] if cause else [])]
    end = next((i for i, line in enumerate(lines) if line.startswith("Config search path")), len(lines))
    kept = [line.strip().rstrip(".:;") for line in lines[:end] if line.strip() and "To append" not in line]
    return "the configuration can't be composed: " + "; ".join(kept) + "."
