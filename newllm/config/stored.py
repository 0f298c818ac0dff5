"""The configuration under which a finished run is evaluated: what the run has stored, with what is asked otherwise.

The stored one is the base, never today's defaults: only the evaluators and choices that are typed are composed anew.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.catalog import Catalog, references
from newllm.config.compose import catalog_for, raw
from newllm.config.groups import groups
from newllm.config.identity import ABSENT, changed
from newllm.config.overrides import Overrides, parse
from newllm.config.validate import validate
from newllm.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_GROUPS = groups().values()
CHOICES = tuple(group.name for group in _GROUPS if group.evaluate == "any")  # another choice may be taken
OPEN = tuple(group.name for group in _GROUPS if group.evaluate in ("any", "options"))  # their options may change
OPTIONS = tuple(f"{group.name}.{option}" for group in _GROUPS for option in group.evaluate if group.name not in OPEN)
KEPT = tuple(f"{group.name}.{option}" for group in _GROUPS for option in group.kept)


@dataclass(frozen=True)
class Request:
    """What is asked of finished runs, read and composed once for all of them.

    composed: the typed choices of conf/ as Hydra composes them, references unresolved; None without any.
    apart: results go into a folder of their own also where nothing but evaluators differs.
    """

    given: Overrides
    composed: DictConfig | None
    apart: bool = False

    @property
    def empty(self) -> bool:
        """Is nothing asked but how to run? Then the run's own evaluation is repeated."""
        return not self.apart and all(key.partition(".")[0] == "runtime" for key in self.given.keys)


@dataclass(frozen=True)
class Evaluation:
    """One run's evaluation.

    trained: the stored configuration; options that newllm has got since then have their defaults.
    config: that of the evaluation; `eval` holds the evaluators to call.
    changes: key -> (as trained, as evaluated), of what may change a number and is no evaluator (apart: those too).
    said: what is otherwise, as one would type it but without the group: ``scaling=yarn``. Empty where the results are
        the run's own.
    repeats: the run's own evaluation is repeated.
    """

    trained: dict[str, Any]
    config: dict[str, Any]
    changes: dict[str, tuple[Any, Any]]
    said: tuple[str, ...]
    repeats: bool

    def kept(self) -> dict[str, Any]:
        """The config.yaml of the results' own folder.

        `eval` is what the run had, so that evaluators may be added to it as to the run itself; with `apart`, those that
        are asked for are in it and tell the folder from others.
        """
        apart = any(key.startswith("eval.") for key in self.changes)
        evaluators = {**self.trained["eval"], **self.config["eval"]} if apart else self.trained["eval"]
        names = list(dict.fromkeys([*self.trained["choices"]["eval"], *evaluators]))
        choices = {**self.config["choices"], "eval": names, "evaluated": ",".join(self.said)}
        typed = [*self.trained["overrides"], *self.config["overrides"]]
        return {**self.config, "eval": evaluators, "choices": choices, "overrides": typed}

    def differences(self) -> list[str]:
        """`changes` as lines, one for all of a node that is of another choice."""
        before, after = self.trained["choices"], self.config["choices"]
        other = [group for group in ("data", "pos_encoding") if before[group] != after[group]]
        lines = [f"{group} is {after[group]}, was {before[group]}" for group in other]
        rest = {
            key: pair
            for key, pair in self.changes.items()
            if key.partition(".")[0] not in other and not any(one.startswith(f"{key}.") for one in self.changes)
        }
        return lines + [f"{key} is {_word(two)}, was {_word(one)}" for key, (one, two) in rest.items()]


def request(overrides: Sequence[str], config_dir: str | Path | None = None, apart: bool = False) -> Request:
    """Read the overrides of an evaluation. Raises ConfigError for what no finished run can have otherwise."""
    catalog = catalog_for(config_dir)
    given = parse(overrides, catalog, sweep=True)
    for override in given.parsed:
        _refuse(override, catalog)
    chosen = [_choice(override) for override in given.parsed if override.key_or_group in catalog.groups]
    composed = raw(parse(chosen, catalog), config_dir).run if chosen else None
    return Request(given, composed, apart)


def evaluation(stored: Mapping[str, Any], asked: Request) -> Evaluation:
    """The evaluation of a run whose effective configuration is `stored`. Raises ConfigError."""
    base: dict[str, Any] = {key: copy.deepcopy(value) for key, value in stored.items() if key != "run_dir"}
    trained = _checked(base, asked.given)
    wanted = _with_choices(trained, asked)
    cfg = OmegaConf.create(wanted)
    keys = []
    for override in asked.given.values:
        keys.append(_home(override, wanted, asked.given.catalog))
        OmegaConf.update(cfg, keys[-1], override.value(), merge=False, force_add=True)
    config = _checked(cfg, asked.given)
    if not config["eval"]:
        raise ConfigError("there is no evaluator to call; name those that are wanted, as in eval=[loss,qk].")
    names = dict.fromkeys([*config["choices"]["eval"], *config["eval"]])  # as in training
    config["eval"] = {name: config["eval"][name] for name in names if name in config["eval"]}
    _settle_axes(wanted, config)
    config["overrides"] = asked.given.of_run()
    compared = {**config, "eval": {**trained["eval"], **config["eval"]} if asked.apart else trained["eval"]}
    changes = changed(trained, compared)
    if asked.apart and not changes:
        raise ConfigError(
            "apart=true keeps what is found under other settings, and these are the run's own; leave it out."
        )
    said = _said(asked, keys, config, changes)
    return Evaluation(trained, config, changes, said, asked.empty)


def _refuse(override: "Override", catalog: Catalog) -> None:
    key, line = override.key_or_group, override.input_line or ""
    root = key.partition(".")[0]
    if override.is_sweep_override():
        raise ConfigError(f"{line}: an evaluation takes one value of each key; a list is written {key}=[…].")
    if key.startswith(("hydra.", "hydra/", "sweep.")):
        raise ConfigError(
            f"{line.removeprefix('sweep.')}: this is an option of training, not of evaluation; leave it out."
        )
    if override.is_delete():
        raise ConfigError(f"{line}: nothing is deleted from a finished run; eval=[…] names the evaluators to call.")
    if key in KEPT:
        raise ConfigError(f"{line}: the model knows the ids of its own tokenizer only, so that stays; leave it out.")
    free = key in CHOICES if key in catalog.groups else root in OPEN or key in OPTIONS or key in catalog.axes
    if not free and root in catalog.groups:
        raise ConfigError(
            f"{line}: {root} is what the run was trained with, and stays; newllm evaluate takes other "
            f"{', '.join(OPEN)}, {', '.join(OPTIONS[:-1])} and {OPTIONS[-1]}."
        )


def _choice(override: "Override") -> str:
    """A choice as Hydra wants it: evaluators in a list, also a single one."""
    key, value = override.key_or_group, override.value()
    if key != "eval":
        return f"{key}={value}"
    return f"eval=[{','.join(map(str, value if isinstance(value, list) else [value]))}]"


def _with_choices(trained: Mapping[str, Any], asked: Request) -> dict[str, Any]:
    """The trained configuration with the nodes of the typed choices; evaluators that the run has keep its options."""
    wanted = copy.deepcopy(dict(trained))
    groups = [key for key in asked.given.keys if key in asked.given.catalog.groups]
    for group in dict.fromkeys(groups):
        assert asked.composed is not None
        node = _resolved(group, asked.composed, trained)
        if group == "eval":
            wanted[group] = {name: trained[group].get(name, one) for name, one in node.items()}
            wanted["choices"][group] = list(node)
            continue
        if group == "data":  # ids mean what they meant in training
            node |= {name: trained[group][name] for name in (key.partition(".")[2] for key in KEPT)}
        wanted[group] = node
        wanted["choices"][group] = next(o.value() for o in asked.given.parsed if o.key_or_group == group)
        _exchange_axes(wanted, group, asked)
    return wanted


def _resolved(group: str, composed: DictConfig, trained: Mapping[str, Any]) -> dict[str, Any]:
    """A composed node with its references followed into the run, and into the defaults for what the run has not."""
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    whole = OmegaConf.create({**plain, **trained, group: plain[group]})
    try:
        node = OmegaConf.to_container(whole[group], resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{group} can't be resolved: {str(error).splitlines()[0]}.") from error
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def _exchange_axes(wanted: dict[str, Any], group: str, asked: Request) -> None:
    """Root axes of which only the former choice knew go; those of the new one come."""
    assert asked.composed is not None
    catalog, choices = asked.given.catalog, wanted["choices"]
    plain = OmegaConf.to_container(asked.composed, resolve=False)
    assert isinstance(plain, dict)
    for axis in references(plain[group]) & {*catalog.axes}:
        wanted.setdefault(axis, plain[axis])
    for axis in [axis for axis in catalog.axes if axis in wanted]:
        users = catalog.users(axis)
        if group in users and not any(choices.get(one) in options for one, options in users.items()):
            del wanted[axis]


def _home(override: "Override", wanted: Mapping[str, Any], catalog: Catalog) -> str:
    """The option that an override means: ``theta`` is ``pos_encoding.theta`` where the encoding has one."""
    key, line = override.key_or_group, override.input_line or ""
    if key not in catalog.axes:
        return key
    homes = [f"{group}.{key}" for group, node in wanted.items() if isinstance(node, dict) and key in node]
    homes = [home for home in homes if not home.startswith(("choices.", "eval."))]
    free = [home for home in homes if home.partition(".")[0] in OPEN or home in OPTIONS]
    if len(homes) == 1 and free and free[0] not in KEPT:
        return free[0]
    if homes and not free:
        raise ConfigError(f"{line}: {homes[0]} is what the run was trained with, and stays; leave {key} out.")
    if not homes:
        raise ConfigError(f"{line}: {key} is an axis that this run does not use; leave it out.")
    raise ConfigError(f"{line}: {key} could mean {' or '.join(homes)}; type the one that is meant.")


def _settle_axes(before_values: Mapping[str, Any], config: dict[str, Any]) -> None:
    """A root axis follows the option that it supplied before values were set."""
    for group in OPEN:
        for name, before in before_values[group].items():
            after = config[group].get(name, before)
            if name in config and config[name] == before and not isinstance(before, Mapping):
                config[name] = after
    if config.get("precision") == before_values["trainer"]["precision"]:
        config["precision"] = config["trainer"]["precision"]


def _checked(content: Mapping[str, Any] | DictConfig, given: Overrides) -> dict[str, Any]:
    """Validated as training validates, and resolved."""
    cfg = content if isinstance(content, DictConfig) else OmegaConf.create(dict(content))
    validate(cfg, given.catalog, given)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration can't be resolved: {str(error).splitlines()[0]}.") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _said(
    asked: Request, keys: Sequence[str], config: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[str, ...]:
    """The choices and options that were typed and do change something, in the order of their names."""
    parts = []
    for group in sorted({key for key in asked.given.keys if key in asked.given.catalog.groups}):
        if any(key.startswith(f"{group}.") for key in changes):
            parts.append(f"{group}={_word(config['choices'][group])}")
    for key in sorted({*keys}):
        if any(f"{one}.".startswith(f"{key}.") or key.startswith(f"{one}.") for one in changes):
            value: Any = config
            for part in key.split("."):
                value = value.get(part, ABSENT) if isinstance(value, Mapping) else ABSENT
            value = Path(value).name if key == "data.path" else value
            parts.append(f"{key.partition('.')[2]}={_word(value)}")
    return tuple(parts)


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
