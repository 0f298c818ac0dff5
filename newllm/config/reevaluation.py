"""The configuration under which a finished run is evaluated again: the stored one with what is typed.

The stored configuration is the base, never today's defaults. The overrides of training are composed, as for any run,
without and with those that are typed, and what differs between the two is changed in what is stored.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newllm.config.axes import refuse_unused
from newllm.config.catalog import Catalog, plain
from newllm.config.compose import catalog_for, compose
from newllm.config.groups import groups
from newllm.config.identity import ABSENT, changed, effective
from newllm.config.overrides import Overrides, parse
from newllm.config.values import check_values
from newllm.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_GROUPS = groups().values()
CHOICES = tuple(group.name for group in _GROUPS if group.evaluate == "any")  # another choice may be taken
OPEN = tuple(group.name for group in _GROUPS if group.evaluate in ("any", "options"))  # their options may change
OPTIONS = tuple(f"{group.name}.{option}" for group in _GROUPS for option in group.evaluate if group.name not in OPEN)
KEPT = tuple(f"{group.name}.{option}" for group in _GROUPS for option in group.kept)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a finished run.

    trained: the run's stored configuration. config: that of the evaluation; its `eval` holds the evaluators to call.
    changes: key -> (as trained, as evaluated), of what may change a number; evaluators only with apart=true.
    said: what differs, as it is typed but without the group: ``scaling=yarn``. Empty if the results are the run's own.
    repeats: the run's own evaluation is repeated.
    """

    trained: dict[str, Any]
    config: dict[str, Any]
    changes: dict[str, tuple[Any, Any]]
    said: tuple[str, ...]
    repeats: bool

    def of_folder(self) -> dict[str, Any]:
        """The config.yaml of the folder that takes the results, where they are not the run's own.

        `eval` is that of the run, so that evaluators may be added to the folder as to the run. With apart=true those
        that are asked for are in it and tell the folder from others.
        """
        apart = any(key.startswith("eval.") for key in self.changes)
        evaluators = {**self.trained["eval"], **self.config["eval"]} if apart else self.trained["eval"]
        names = list(dict.fromkeys([*self.trained["choices"]["eval"], *evaluators]))
        choices = {**self.config["choices"], "eval": names, "evaluated": ",".join(self.said)}
        typed = [*self.trained["overrides"], *self.config["overrides"]]
        return {**self.config, "eval": evaluators, "choices": choices, "overrides": typed}

    def differences(self) -> list[str]:
        """`changes` as lines; a node of another choice takes one line."""
        before, after = self.trained["choices"], self.config["choices"]
        other = [group for group in ("data", "pos_encoding") if before[group] != after[group]]
        lines = [f"{group} is {after[group]}, was {before[group]}" for group in other]
        for key, (one, two) in self.changes.items():
            nested = any(longer.startswith(f"{key}.") for longer in self.changes)
            if key.partition(".")[0] not in other and not nested:
                lines.append(f"{key} is {_word(two)}, was {_word(one)}")
        return lines


def evaluation(
    stored: Mapping[str, Any],
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    apart: bool = False,
) -> Evaluation:
    """The evaluation of a run whose effective configuration is `stored`. Raises ConfigError.

    apart: results go into a folder of their own also where only evaluators differ.
    """
    trained = {key: value for key, value in stored.items() if key != "run_dir"}
    given = read(overrides, config_dir)
    config = {**_changed(trained, given, config_dir), "overrides": given.of_run()} if overrides else dict(trained)
    if not config["eval"]:
        raise ConfigError("there is no evaluator to call; name those that are wanted, as in eval=[loss,qk].")
    names = dict.fromkeys([*config["choices"]["eval"], *config["eval"]])  # as in training
    config["eval"] = {name: config["eval"][name] for name in names if name in config["eval"]}
    compared = {**config, "eval": {**trained["eval"], **config["eval"]} if apart else trained["eval"]}
    changes = changed(trained, compared)
    if apart and not changes:
        raise ConfigError(
            "apart=true keeps what is found under other settings, and these are the run's own; leave it out."
        )
    repeats = not apart and all(key.partition(".")[0] == "runtime" for key in given.keys)
    return Evaluation(trained, config, changes, _said(given, config, changes), repeats)


def read(overrides: Sequence[str], config_dir: str | Path | None = None) -> Overrides:
    """The overrides of an evaluation. Raises ConfigError for what no finished run can have otherwise."""
    given = parse(overrides, catalog_for(config_dir), sweep=True)
    for override in given.parsed:
        _refuse(override, given.catalog)
    return given


def _refuse(override: "Override", catalog: Catalog) -> None:
    key, line = override.key_or_group, override.input_line or ""
    group = key.partition(".")[0]
    if override.is_sweep_override():
        raise ConfigError(f"{line}: an evaluation takes one value of each key; a list is written {key}=[…].")
    if key.startswith(("hydra.", "hydra/", "sweep.")):
        raise ConfigError(
            f"{line.removeprefix('sweep.')}: this is an option of training, not of evaluation; leave it out."
        )
    if key in KEPT:
        raise ConfigError(f"{line}: the model knows the ids of its own tokenizer only, so that stays; leave it out.")
    free = key in CHOICES if key in catalog.groups else group in OPEN or key in OPTIONS
    if group in catalog.groups and not free:
        raise ConfigError(f"{line}: {_stays(group)}")


def _stays(key: str) -> str:
    free = ", ".join([*OPEN, *OPTIONS[:-1]])
    return f"{key} is what the run was trained with, and stays; newllm evaluate takes other {free} and {OPTIONS[-1]}."


def _changed(trained: Mapping[str, Any], given: Overrides, config_dir: str | Path | None) -> dict[str, Any]:
    """The configuration `trained` with what is typed."""
    if not trained["pos_encoding"] and any(key.partition(".")[0] == "pos_encoding" for key in given.keys):
        raise ConfigError(f"model={trained['choices']['model']} has no pos_encoding; leave that out.")
    lines = _relevant(trained, given)
    typed = [
        _evaluators_as_list(line) if override.key_or_group == "eval" else line
        for line, override in zip(given.of_run(), given.parsed, strict=True)
    ]
    kept = [line for line in lines if not _superseded(line.partition("=")[0], given)]
    before, _ = _composed(tuple(lines), config_dir)
    after, cfg = _composed((*kept, *typed), config_dir)
    refuse_unused(cfg, given)
    config = _apply(dict(trained), before, after)
    for key in KEPT:
        group, _, option = key.partition(".")
        if option in trained[group]:
            config[group] = {**config[group], option: trained[group][option]}
    for key in changed(trained, config):
        if key.partition(".")[0] not in OPEN and key not in OPTIONS:
            raise ConfigError(_stays(key))
    return config


def _relevant(trained: Mapping[str, Any], given: Overrides) -> list[str]:
    """The overrides of training that matter to what is typed: the other groups stay as they are in any case.

    So files of the user's are needed only for the groups that are typed. An axis may matter to each group. With another
    choice for a group an experiment is left out, since what it says of the group is meant for its own choice.
    """
    catalog, choices = given.catalog, trained["choices"]
    every = any(key in catalog.axes for key in given.keys)
    relevant = {*choices} if every else {key.partition(".")[0] for key in given.keys}
    lines = [f"{axis}={json.dumps(trained[axis])}" for axis in catalog.axes if axis in trained and axis != "seed"]
    if not any(key in catalog.groups and key != "eval" for key in given.keys):
        relevant.add("experiment")
    else:
        relevant &= {*OPEN}
        lines += [f"{group}={json.dumps(choices[group])}" for group in sorted(relevant)]
    for line in trained["overrides"]:
        key = line.partition("=")[0]
        again = key in catalog.axes or (key in catalog.groups and "experiment" not in relevant)
        if not again and key.lstrip("~").partition(".")[0] in relevant:
            lines.append(line)
    return lines


def _superseded(key: str, given: Overrides) -> bool:
    """Whether an override of training, by its key, gives way to one that is typed."""
    group, _, rest = key.lstrip("~").partition(".")
    for override in given.parsed:
        typed = override.key_or_group
        if typed == key or (typed in given.catalog.axes and rest and key.rpartition(".")[2] == typed):
            return True
        if typed == group and group in given.catalog.groups:  # another choice; of evaluators those named are kept
            return group != "eval" or rest.partition(".")[0] not in _names(override.value())
    return False


@cache
def _composed(lines: tuple[str, ...], config_dir: str | Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The effective configuration, and the composed one. The runs of a sweep share most of them."""
    cfg = check_values(compose(lines, config_dir=config_dir, unused_axes=True))
    return effective(cfg), plain(cfg)


def _apply(stored: Any, before: Any, after: Any) -> Any:
    """`stored` with what differs between `before` and `after`."""
    if before == after and stored is not ABSENT:
        return stored
    nodes = all(isinstance(one, Mapping) for one in (stored, before, after))
    if not nodes or before.get("_target_") != after.get("_target_"):
        return after
    keys = dict.fromkeys([*stored, *after])
    found = {key: _apply(*(one.get(key, ABSENT) for one in (stored, before, after))) for key in keys}
    return {key: value for key, value in found.items() if value is not ABSENT}


def _names(value: Any) -> list[str]:
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def _evaluators_as_list(line: str) -> str:
    """``eval=rank`` is ``eval=[rank]``."""
    value = line.partition("=")[2]
    return line if value.startswith("[") else f"eval=[{value}]"


def _said(given: Overrides, config: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices and options that were typed and do change something, in the order of their names."""
    choices, options = [], set()
    for override in given.parsed:
        key = override.key_or_group
        if key in given.catalog.groups:
            if any(one.startswith(f"{key}.") for one in changes):
                choices.append(f"{key}={_word(config['choices'][key])}")
        elif key in given.catalog.axes:
            options |= {one for one in changes if one.endswith(f".{key}")}
        elif any(f"{one}.".startswith(f"{key}.") or key.startswith(f"{one}.") for one in changes):
            options.add(key)
    parts = []
    for key in sorted(options):
        value: Any = config
        for part in key.split("."):
            value = value.get(part, ABSENT) if isinstance(value, Mapping) else ABSENT
        value = Path(value).name if key == "data.path" else value
        parts.append(f"{key.partition('.')[2]}={_word(value)}")
    return (*sorted(choices), *parts)


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
