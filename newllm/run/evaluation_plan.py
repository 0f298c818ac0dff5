"""Plans the evaluation of a finished run, without torch: the run's stored configuration with the typed overrides.

The stored configuration is the base, not today's defaults. The training overrides are composed twice, with and without
the typed ones, and the differences between the two are applied to the stored configuration.
"""

import json
import os
import shlex
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
from newllm.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_GROUPS = groups().values()
FREE_CHOICES = tuple(group.name for group in _GROUPS if group.evaluate == "any")  # groups whose choice may change
FREE_GROUPS = tuple(group.name for group in _GROUPS if group.evaluate in ("any", "options"))  # all options may change
FREE_OPTIONS = tuple(
    f"{group.name}.{option}" for group in _GROUPS for option in group.evaluate if group.name not in FREE_GROUPS
)
FIXED_OPTIONS = tuple(f"{group.name}.{option}" for group in _GROUPS for option in group.kept)


@dataclass(frozen=True)
class EvaluationPlan:
    """One evaluation of a finished run.

    run: the directory of the run. trained: its stored configuration. config: the configuration of the evaluation; its
    `eval` holds the evaluators to call.
    changes: key -> (as trained, as evaluated), of the settings that may change a number; evaluators only with
    apart=true.
    settings: the changed settings as typed, without the group: ``scaling=yarn``. Empty if the results belong to the
    run's own.
    repeats: this repeats the run's own evaluation.
    """

    run: RunDirectory
    trained: dict[str, Any]
    config: dict[str, Any]
    changes: dict[str, tuple[Any, Any]]
    settings: tuple[str, ...]
    repeats: bool

    def folder_config(self) -> dict[str, Any]:
        """The config.yaml of the folder that takes the results if they do not belong to the run's own.

        Its `eval` is the run's, so that evaluators can be added to the folder as they can to the run. With apart=true
        it also has the evaluators of this plan, which distinguish the folder from others.
        """
        apart = any(key.startswith("eval.") for key in self.changes)
        evaluators = {**self.trained["eval"], **self.config["eval"]} if apart else self.trained["eval"]
        names = list(dict.fromkeys([*self.trained["choices"]["eval"], *evaluators]))
        choices = {**self.config["choices"], "eval": names, "evaluated": ",".join(self.settings)}
        typed = [*self.trained["overrides"], *self.config["overrides"]]
        return {**self.config, "eval": evaluators, "choices": choices, "overrides": typed}

    def differences(self) -> list[str]:
        """`changes` as lines; a group with another choice takes one line."""
        before, after = self.trained["choices"], self.config["choices"]
        other = [group for group in ("data", "pos_encoding") if before[group] != after[group]]
        lines = [f"{group} is {after[group]}, was {before[group]}" for group in other]
        for key, (old, new) in self.changes.items():
            nested = any(longer.startswith(f"{key}.") for longer in self.changes)
            if key.partition(".")[0] not in other and not nested:
                lines.append(f"{key} is {_as_typed(new)}, was {_as_typed(old)}")
        return lines


def plan_evaluation(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    apart: bool = False,
) -> EvaluationPlan:
    """Plan the evaluation of the run in the directory `path`.

    apart: put the results into a folder of their own even if only evaluators differ.

    Raises ConfigError if the run is not done, its directory is not writable, or an override is not allowed.
    """
    run = _finished_run(path)
    config = run.config()
    data = _with_existing_paths(config["data"], Path(run.environment().get("folder", ".")))
    return plan_from_config(run, {**config, "data": data}, overrides, config_dir, apart)


def plan_from_config(
    run: RunDirectory,
    stored: Mapping[str, Any],
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    apart: bool = False,
) -> EvaluationPlan:
    """Plan the evaluation of a run whose effective configuration is `stored`. Raises ConfigError."""
    trained = {key: value for key, value in stored.items() if key != "run_dir"}
    given = parse_overrides(overrides, config_dir)
    config = {**_overridden(trained, given, config_dir), "overrides": given.of_run()} if overrides else dict(trained)
    if not config["eval"]:
        raise ConfigError("there is no evaluator to call; name the ones you want, as in eval=[loss,qk].")
    names = dict.fromkeys([*config["choices"]["eval"], *config["eval"]])  # in the order of training
    config["eval"] = {name: config["eval"][name] for name in names if name in config["eval"]}
    compared = {**config, "eval": {**trained["eval"], **config["eval"]} if apart else trained["eval"]}
    changes = changed(trained, compared)
    if apart and not changes:
        raise ConfigError(
            "apart=true is for settings other than the run's own, and these are the run's own; leave it out."
        )
    repeats = not apart and all(key.partition(".")[0] == "runtime" for key in given.keys)
    return EvaluationPlan(run, trained, config, changes, _changed_settings(given, config, changes), repeats)


def _finished_run(path: str | os.PathLike[str]) -> RunDirectory:
    run = RunDirectory(path)
    if not run.config():
        raise ConfigError(f"{path} is no run directory, since it has no config.yaml; runs are in outputs/runs.")
    if run.trained is not run:
        typed = shlex.join(next((line["overrides"] for line in reversed(run.evaluated())), []))
        raise ConfigError(
            f"{path} is an evaluation of another run; type newllm evaluate {run.trained.path} {typed} rerun=true to "
            "see its numbers again."
        )
    if not run.is_done():
        raise ConfigError(f"{path} is not done but {run.observed()}; the command that started it resumes it.")
    if not os.access(run.path, os.W_OK):
        raise ConfigError(f"{path} is not writable, so results can't be added; copy it and evaluate the copy.")
    return run


def _with_existing_paths(data: Mapping[str, Any], started_in: Path) -> dict[str, Any]:
    """The data node; paths that exist only in the folder that training was started in are made to point there."""
    found = dict(data)
    for key in ("path", "tokenizer"):
        if isinstance(found.get(key), str) and not Path(found[key]).expanduser().exists():
            found[key] = str(started_in / found[key]) if (started_in / found[key]).exists() else found[key]
    return found


def parse_overrides(overrides: Sequence[str], config_dir: str | Path | None = None) -> Overrides:
    """Parse the overrides of an evaluation. Raises ConfigError for any that no finished run can take."""
    given = parse(overrides, catalog_for(config_dir), sweep=True)
    for override in given.parsed:
        _check_override(override, given.catalog)
    return given


def _check_override(override: "Override", catalog: Catalog) -> None:
    key, line = override.key_or_group, override.input_line or ""
    group = key.partition(".")[0]
    if override.is_sweep_override():
        raise ConfigError(f"{line}: an evaluation takes one value of each key; a list is written {key}=[…].")
    if key.startswith(("hydra.", "hydra/", "sweep.")):
        raise ConfigError(
            f"{line.removeprefix('sweep.')}: this is an option of training, not of evaluation; leave it out."
        )
    if key in FIXED_OPTIONS:
        raise ConfigError(f"{line}: the model knows only the ids of its own tokenizer; leave it out.")
    free = key in FREE_CHOICES if key in catalog.groups else group in FREE_GROUPS or key in FREE_OPTIONS
    if group in catalog.groups and not free:
        raise ConfigError(f"{line}: {_fixed_by_training(group)}")


def _fixed_by_training(key: str) -> str:
    free = ", ".join([*FREE_GROUPS, *FREE_OPTIONS[:-1]])
    return f"{key} is fixed by training; newllm evaluate can change {free} and {FREE_OPTIONS[-1]}."


def _overridden(trained: Mapping[str, Any], given: Overrides, config_dir: str | Path | None) -> dict[str, Any]:
    """The configuration `trained` with the typed overrides."""
    if not trained["pos_encoding"] and any(key.partition(".")[0] == "pos_encoding" for key in given.keys):
        raise ConfigError(f"model={trained['choices']['model']} has no pos_encoding; leave that out.")
    lines = _training_overrides(trained, given)
    typed = []
    for line, override in zip(given.of_run(), given.parsed, strict=True):
        value = line.partition("=")[2]
        as_list = override.key_or_group == "eval" and not value.startswith("[")  # eval=rank is eval=[rank]
        typed.append(f"eval=[{value}]" if as_list else line)
    kept = [line for line in lines if not _is_replaced(line.partition("=")[0], given)]
    before, _ = _composed(tuple(lines), config_dir)
    after, cfg = _composed((*kept, *typed), config_dir)
    refuse_unused(cfg, given)
    config = _apply_differences(dict(trained), before, after)
    for key in FIXED_OPTIONS:
        group, _, option = key.partition(".")
        if option in trained[group]:
            config[group] = {**config[group], option: trained[group][option]}
    for key in changed(trained, config):
        if key.partition(".")[0] not in FREE_GROUPS and key not in FREE_OPTIONS:
            raise ConfigError(_fixed_by_training(key))
    return config


def _training_overrides(trained: Mapping[str, Any], given: Overrides) -> list[str]:
    """The training overrides of the groups that the typed overrides touch; other groups keep their stored nodes.

    So the user's own YAML files are needed only for the groups that are typed. An axis may affect every group. If a
    group gets another choice, the experiment is left out, since its settings were meant for its own choice.
    """
    catalog, choices = given.catalog, trained["choices"]
    any_axis = any(key in catalog.axes for key in given.keys)
    touched = {*choices} if any_axis else {key.partition(".")[0] for key in given.keys}
    lines = [f"{axis}={json.dumps(trained[axis])}" for axis in catalog.axes if axis in trained and axis != "seed"]
    if not any(key in catalog.groups and key != "eval" for key in given.keys):
        touched.add("experiment")
    else:
        touched &= {*FREE_GROUPS}
        lines += [f"{group}={json.dumps(choices[group])}" for group in sorted(touched)]
    for line in trained["overrides"]:
        key = line.partition("=")[0]
        already = key in catalog.axes or (key in catalog.groups and "experiment" not in touched)
        if not already and key.lstrip("~").partition(".")[0] in touched:
            lines.append(line)
    return lines


def _is_replaced(key: str, given: Overrides) -> bool:
    """Whether a typed override replaces the training override of `key`."""
    group, _, rest = key.lstrip("~").partition(".")
    for override in given.parsed:
        typed = override.key_or_group
        if typed == key or (typed in given.catalog.axes and rest and key.rpartition(".")[2] == typed):
            return True
        if (
            typed == group and group in given.catalog.groups
        ):  # another choice; the evaluators it names keep their options
            value: Any = override.value()
            names = [str(name) for name in (value if isinstance(value, list) else [value])]
            return group != "eval" or rest.partition(".")[0] not in names
    return False


@cache
def _composed(lines: tuple[str, ...], config_dir: str | Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The effective and the composed configuration. Cached, since the runs of a sweep share most overrides."""
    cfg = check_values(compose(lines, config_dir=config_dir, unused_axes=True))
    return effective(cfg), plain(cfg)


def _apply_differences(stored: Any, before: Any, after: Any) -> Any:
    """`stored` with the differences between `before` and `after`."""
    if before == after and stored is not ABSENT:
        return stored
    nodes = all(isinstance(node, Mapping) for node in (stored, before, after))
    if not nodes or before.get("_target_") != after.get("_target_"):
        return after
    keys = dict.fromkeys([*stored, *after])
    merged = {key: _apply_differences(*(node.get(key, ABSENT) for node in (stored, before, after))) for key in keys}
    return {key: value for key, value in merged.items() if value is not ABSENT}


def _changed_settings(given: Overrides, config: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The typed choices and options that change something, sorted by name."""
    choices, options = [], set()
    for override in given.parsed:
        key = override.key_or_group
        if key in given.catalog.groups:
            if any(change.startswith(f"{key}.") for change in changes):
                choices.append(f"{key}={_as_typed(config['choices'][key])}")
        elif key in given.catalog.axes:
            options |= {change for change in changes if change.endswith(f".{key}")}
        elif any(f"{change}.".startswith(f"{key}.") or key.startswith(f"{change}.") for change in changes):
            options.add(key)
    parts = []
    for key in sorted(options):
        value: Any = config
        for part in key.split("."):
            value = value.get(part, ABSENT) if isinstance(value, Mapping) else ABSENT
        value = Path(value).name if key == "data.path" else value
        parts.append(f"{key.partition('.')[2]}={_as_typed(value)}")
    return (*sorted(choices), *parts)


def _as_typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_as_typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_typed, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
