"""Plans the evaluation of a finished run, without torch: the run's stored configuration with the typed overrides.

The stored values are the base, not today's defaults. The YAML files are read only for the groups that the overrides
concern: for the options of a new choice, and to see which options follow an axis.
"""

import json
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from newllm.config.axes import refuse_unused_axes
from newllm.config.catalog import REFERENCE, references
from newllm.config.compose import Composed, catalog_for, composed_choices, with_values
from newllm.config.groups import group_of, groups
from newllm.config.identity import canonical, changed, effective, value_at, with_content
from newllm.config.overrides import Overrides, parse
from newllm.config.values import check_values, require_parts, shown
from newllm.errors import ConfigError
from newllm.store.own_code import use_code_of_run
from newllm.store.run_directory import RunDirectory

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
    changes: key -> (as trained, as evaluated), of the settings other than evaluators that may change a number.
    settings: the changed settings as typed, without the group: ``scaling=yarn``. If empty, the results belong to the
    run's own; else to a folder of their own.
    repeats: this repeats the run's own evaluation.
    options: evaluator -> those of its options that differ from what the results there were made with.
    """

    run: RunDirectory
    trained: dict[str, Any]
    config: dict[str, Any]
    changes: dict[str, tuple[Any, Any]]
    settings: tuple[str, ...]
    repeats: bool
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def folder_config(self) -> dict[str, Any]:
        """The config.yaml of the folder of an evaluation under other settings.

        Its `eval` is the run's, so that evaluators can be added to the folder as they can to the run.
        """
        choices = {
            **self.config["choices"],
            "eval": self.trained["choices"].get("eval"),
            "evaluated": ",".join(self.settings),
        }
        overrides = [*self.trained["overrides"], *self.config["overrides"]]
        other = {name: self.config["eval"][name] for name in self.options}
        mark = {"evaluator_options": self.options} if other else {}  # gives the folder a signature of its own
        evaluators = {**self.trained["eval"], **other}
        return {**self.config, "eval": evaluators, "choices": choices, "overrides": overrides, **mark}

    def with_other_options(self, directory: RunDirectory, names: Set[str]) -> "EvaluationPlan | None":
        """The plan for a folder of its own if other options are why the results of the evaluators `names` differ from
        the stored ones in `directory`, so that each has been called, with other options than now; else None."""
        if not names or not names <= {*self.config["eval"]}:
            return None
        called = [(directory.config() or self.trained)["eval"], *(line["eval"] for line in directory.evaluated())]
        options: dict[str, dict[str, Any]] = {}
        for name in names:
            others = [evaluators[name] for evaluators in called if name in evaluators]
            own = self.config["eval"][name]
            if not others or canonical(own) in map(canonical, others):
                return None
            options[name] = {key: value for key, value in own.items() if others[0].get(key, ()) != value}
        typed = [f"{name}.{key}={shown(value)}" for name in sorted(options) for key, value in options[name].items()]
        return replace(self, settings=(*self.settings, *typed), options=options)

    def differences(self) -> list[str]:
        """`changes` as lines; a group with another choice takes one line."""
        before, after = self.trained["choices"], self.config["choices"]
        rechosen = [group for group in FREE_CHOICES if group != "eval" and before[group] != after[group]]
        lines = [f"{group} is {after[group]}, was {before[group]}" for group in rechosen]
        for key, (old, new) in self.changes.items():
            nested = any(longer.startswith(f"{key}.") for longer in self.changes)
            if key in (self.config.get("content") or {}):  # paths, whose content differs
                old, new = value_at(self.trained, key), value_at(self.config, key)
                new = f"{new} (with other content)" if old == new else new
            if key.partition(".")[0] not in rechosen and not nested:
                lines.append(f"{key} is {shown(new)}, was {shown(old)}")
        return lines


def plan_evaluation(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> EvaluationPlan:
    """Plan the evaluation of the run in the directory `path`.

    Raises ConfigError if the run is not done, its directory is not writable, or an override is not allowed.
    """
    run = RunDirectory(path)
    config = dict(run.existing_config())
    require_parts(config)
    if run.trained is not run:
        raise ConfigError(
            f"{path} is an evaluation of another run; type {run.evaluation_command()} rerun=true to see its numbers "
            "again."
        )
    if not run.is_done():
        raise ConfigError(f"{path} is not done but {run.observed()}; the command that started it resumes it.")
    if not os.access(run.path, os.W_OK):
        raise ConfigError(f"{path} is not writable, so results can't be added; copy it and evaluate the copy.")
    use_code_of_run(run)
    started_in = Path(run.environment().get("folder", "."))
    for key in config.get("content", {}):  # paths may be relative to the folder that training was started in
        group, _, option = key.partition(".")
        there = started_in / (text := config[group][option])
        if not os.path.exists(os.path.expanduser(text)) and os.path.exists(there):
            config[group] = {**config[group], option: str(there)}
    place = config["data"].get("path")
    lost = "data.path" in config.get("content", {}) and not os.path.exists(os.path.expanduser(place))
    if lost and {word.partition("=")[0] for word in overrides}.isdisjoint(("data", "data.path")):
        raise ConfigError(f"data.path={place} does not exist any more; type data.path=…, where that text is now.")
    return plan_from_config(run, config, overrides, config_dir)


def plan_from_config(
    run: RunDirectory, stored: Mapping[str, Any], overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> EvaluationPlan:
    """Plan the evaluation of a run whose effective configuration is `stored`. Raises ConfigError."""
    trained = {key: value for key, value in stored.items() if key != "run_dir"}
    given = parse_overrides(overrides, config_dir)
    config, unresolved = _with_overrides(trained, given, config_dir) if overrides else (dict(trained), trained)
    if not config.get("eval"):
        raise ConfigError("there is no evaluator to call; name the ones you want, as in 'eval=[loss,qk]'.")
    named = [name for name in config["choices"].get("eval") or () if name in config["eval"]]
    config["eval"] = {**{name: config["eval"][name] for name in named}, **config["eval"]}  # in the order of the names
    changes = changed(trained, config)
    settings = _changed_settings(given, config, unresolved, changes)
    repeats = all(key.partition(".")[0] == "runtime" for key in given.keys)
    return EvaluationPlan(run, trained, config, changes, settings, repeats)


def missing_evaluators(run: RunDirectory, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the evaluators `wanted` (name -> options) whose results the finished run doesn't have."""
    called = [run.config().get("eval") or {}, *(line["eval"] for line in run.evaluated())]
    known = {(name, str(canonical(options))) for evaluators in called for name, options in evaluators.items()}
    return {name: options for name, options in wanted.items() if (name, str(canonical(options))) not in known}


def parse_overrides(overrides: Sequence[str], config_dir: str | Path | None = None) -> Overrides:
    """Parse the overrides of an evaluation. Raises ConfigError for any that no finished run can take."""
    given = parse(overrides, catalog_for(config_dir), sweep=True)
    for override in given.parsed:
        key, line = override.key_or_group, override.input_line or ""
        group = key.partition(".")[0]
        if override.is_sweep_override():
            raise ConfigError(f"{line}: an evaluation takes one value of each key; a list is written '{key}=[…]'.")
        if key.startswith(("hydra.", "hydra/", "sweep.")):
            raise ConfigError(
                f"{line.removeprefix('sweep.')}: this is an option of training, not of evaluation; leave it out."
            )
        if key in FIXED_OPTIONS:
            raise ConfigError(f"{line}: the model knows only the ids of its own tokenizer; leave it out.")
        allowed = key in FREE_CHOICES if key in given.catalog.groups else group in FREE_GROUPS or key in FREE_OPTIONS
        if group in given.catalog.groups and not allowed:
            raise ConfigError(_fixed_by_training(group, line))
    return given


def _fixed_by_training(key: str, line: str) -> str:
    """The message for the override `line`, which would change `key`."""
    free = ", ".join([*FREE_GROUPS, *FREE_OPTIONS[:-1]])
    return (
        f"{line}: {key} is fixed by training; leave {line.lstrip('+').partition('=')[0]} out (newllm evaluate can "
        f"change {free} and {FREE_OPTIONS[-1]})."
    )


def _with_overrides(
    trained: Mapping[str, Any], given: Overrides, config_dir: str | Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration `trained` with the typed overrides; and the same with references to axes in place of values."""
    catalog, choices = given.catalog, trained["choices"]
    roots = {key.partition(".")[0] for key in given.keys}
    if not trained["pos_encoding"] and "pos_encoding" in roots:
        raise ConfigError(f"model={choices['model']} has no pos_encoding; leave that out.")

    # The YAML files are read for the groups that the overrides concern: all of them if an axis is among the overrides.
    axes = roots & {*catalog.axes}
    unread = ("experiment", "model") if "imported" in trained else ("experiment",)  # an imported model has no YAML file
    concerned = {
        name
        for name in choices
        if name in catalog.groups and choices[name] is not None and name not in unread and (axes or name in roots)
    }
    typed = {override.key_or_group: override for override in given.parsed if override.key_or_group in catalog.groups}
    stored_lines = {name: f"{name}={json.dumps(choices[name])}" for name in sorted(concerned)}
    typed_lines = {name: override.input_line or "" for name, override in typed.items()}
    before = _composed(tuple(stored_lines.values()), config_dir)
    after = _composed(tuple({**stored_lines, **typed_lines}.values()), config_dir)
    choices = {**choices, **{name: after.choices[name] for name in typed}}

    tree: dict[str, Any] = {**after.tree, **trained}
    for name in concerned:
        node: Any = after.tree.get(name)
        if name == "eval":
            tree[name] = {one: trained[name].get(one, node.get(one)) for one in choices[name]}
        elif name not in typed:
            tree[name] = _with_references(trained[name], node, trained, axes)
        else:
            fixed = {option: trained[name][option] for option in group_of(name).kept if option in trained[name]}
            tree[name] = {**node, **fixed}
    tree = with_values(replace(after, tree=tree, choices=choices), given).run
    tree |= {"choices": choices, "overrides": given.of_run()}
    refuse_unused_axes(tree, given)

    # Leave out axes that no option refers to any more, as theta after pos_encoding=alibi.
    references_before, references_after = (
        references([nodes.get(name) for name in concerned]) for nodes in (before.tree, tree)
    )
    unused = (references_before - references_after) & {*catalog.axes}
    config = effective(check_values(OmegaConf.create(tree)))
    config = {key: config.get(key, trained.get(key)) for key in sorted({*trained, *config} - unused)}
    # Files at a path that was typed may have changed, or have moved there.
    content = {
        key: found
        for key, found in trained.get("content", {}).items()
        if key not in given.keys and value_at(trained, key) == value_at(config, key)
    }
    config = with_content({**config, "content": content})
    for key in changed(trained, config):
        if key.partition(".")[0] not in FREE_GROUPS and key not in FREE_OPTIONS:
            follows = references(value_at(tree, key))
            lines = [override.input_line or "" for override in given.parsed if override.key_or_group in follows]
            raise ConfigError(_fixed_by_training(key, lines[0] if lines else key))
    return config, tree


@cache
def _composed(lines: tuple[str, ...], config_dir: str | Path | None) -> Composed:
    """The composition of some choices. Cached, since the runs of a sweep share them."""
    return composed_choices(parse(lines, catalog_for(config_dir)))


def _with_references(stored: Any, node: Any, config: Mapping[str, Any], axes: set[str]) -> Any:
    """`stored` with the references in the unresolved `node` to axes that it follows, or is to follow (`axes`)."""
    if isinstance(stored, Mapping) and isinstance(node, Mapping):
        return {
            key: _with_references(value, node[key], config, axes) if key in node else value
            for key, value in stored.items()
        }
    axis = REFERENCE.fullmatch(node) if isinstance(node, str) else None
    follows = axis and (axis[1] in axes or canonical(config.get(axis[1], ())) == canonical(stored))
    return node if follows else stored


def _changed_settings(
    given: Overrides, config: Mapping[str, Any], unresolved: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[str, ...]:
    """The typed choices and options that change something, sorted by name."""
    choices, options = [], set()
    for key in given.keys:
        if key in given.catalog.groups:
            if any(change.startswith(f"{key}.") for change in changes):
                choices.append(f"{key}={shown(config['choices'][key])}")
        elif key in given.catalog.axes:
            options |= {change for change in changes if key in references(value_at(unresolved, change))}
        elif any(f"{change}.".startswith(f"{key}.") or key.startswith(f"{change}.") for change in changes):
            options.add(key)
    parts = []
    for key in sorted(options):
        value = Path(value_at(config, key)).name if key == "data.path" else value_at(config, key)
        parts.append(f"{key.partition('.')[2]}={shown(value)}")
    return (*sorted(choices), *parts)
