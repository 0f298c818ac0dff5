"""compose(): from overrides to a validated configuration. The single way for commands, notebooks and tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from newllm.config import groups
from newllm.config.axes import refuse_unused
from newllm.config.catalog import Catalog, shipped
from newllm.config.overrides import Overrides, parse
from newllm.config.validate import validate, validate_node
from newllm.errors import ConfigError


@dataclass(frozen=True)
class Raw:
    """What Hydra composes, before any check of ours: the run, and beside it what is no part of a run."""

    run: DictConfig  # group nodes and axes
    choices: dict[str, Any]  # group -> option, as Hydra records it
    sweep: DictConfig  # which runs a sweep has, and how they are done
    launcher: DictConfig  # what does them
    run_dir: str | None  # hydra.run.dir where it was given
    sweep_dir: str


def compose(
    overrides: Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    unused_axes: bool = False,
) -> DictConfig:
    """The configuration that `overrides` (as on the command line) describe.

    Every node with a `_target_` has been checked against the constructor's signature: unknown and missing options
    are refused, values have the types of their annotations, options that the YAML leaves out have their defaults.
    Beside the group nodes and the root axes it has three keys of its own: `choices` (group -> option, a list for
    eval, `experiment` included), `overrides` (as given, without ``+``) and `run_dir` (`hydra.run.dir` where that
    was given, else null). Of sweeps and launchers it says nothing, since they are no part of a run.

    config_dir: a folder of further YAML files, laid out like conf/.
    unused_axes: accept an axis that the chosen groups do not use (in a sweep, where other runs use it).

    Raises ConfigError: one sentence on what was wrong, what was expected and what to type instead.
    """
    given = parse(overrides, catalog_for(config_dir))
    return finish(raw(given, config_dir), given, unused_axes)


def raw(given: Overrides, config_dir: str | Path | None = None) -> Raw:
    """Compose without checking; ConfigError for what Hydra itself refuses."""
    cfg = _hydra_compose(given, config_dir)
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(choices, dict)
    with open_dict(cfg):
        hydra, sweep = cfg.pop("hydra"), cfg.pop("sweep")
    if not isinstance(sweep, DictConfig):
        raise ConfigError(
            "sweep takes no value of its own, but options such as sweep.seeds=3; an experiment's sweep is done with "
            "-m, and without it the experiment is one run."
        )
    return Raw(
        run=cfg,
        choices={str(group): option for group, option in choices.items()},
        sweep=validate_node("sweep", sweep),
        launcher=validate_node("hydra.launcher", hydra.launcher),
        run_dir=hydra.run.dir if "hydra.run.dir" in given.keys else None,
        sweep_dir=hydra.sweep.dir,
    )


def finish(composed: Raw, given: Overrides, unused_axes: bool = False) -> DictConfig:
    """The checked configuration of a run; `composed.run` becomes it."""
    cfg, catalog = composed.run, given.catalog
    with open_dict(cfg):
        _drop_deselected(cfg, catalog, given)
        cfg.choices = _choices(composed.choices, cfg, catalog)
        cfg.overrides = given.of_run()
        cfg.run_dir = composed.run_dir
        if own := {name: facts for folder in catalog.folders[:-1] for name, facts in groups.read(folder).items()}:
            cfg.groups = own
        validate(cfg, catalog, given)
        if not unused_axes:
            refuse_unused(cfg, catalog, given)
    OmegaConf.set_struct(cfg, True)
    return cfg


def catalog_for(config_dir: str | Path | None = None) -> Catalog:
    """The choices of the shipped folder and of the user's."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder; expected one laid out like conf/.")
    return Catalog((Path(config_dir).resolve(), shipped()) if config_dir else (shipped(),))


def search_path(config_dir: str | Path | None) -> list[str]:
    """The override that shows the user's folder to Hydra."""
    return [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"] if config_dir else []


def _hydra_compose(given: Overrides, config_dir: str | Path | None) -> DictConfig:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    lines = [*search_path(config_dir), *given.for_hydra()]
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # set where a Hydra program calls us
    try:
        with hydra.initialize_config_dir(str(shipped()), job_name="train", version_base="1.3"):
            return hydra.compose("train", lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_one_sentence(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def _drop_deselected(cfg: DictConfig, catalog: Catalog, given: Overrides) -> None:
    """What an experiment says of a part that the command line has left out: of an evaluator, or of a group by none."""

    def asked(path: str) -> bool:
        return any(key.startswith(f"{path}.") for key in given.keys)

    for group, default in catalog.defaults.items():
        if isinstance(default, list):
            for name in [str(name) for name, node in cfg[group].items() if "_target_" not in node]:
                if name in catalog.groups[group] and not asked(f"{group}.{name}"):
                    del cfg[group][name]
        elif group in given.keys and cfg.get(group) and "_target_" not in cfg[group] and not asked(group):
            cfg[group] = {}


def _choices(chosen: dict[str, Any], cfg: DictConfig, catalog: Catalog) -> dict[str, Any]:
    # Hydra's own record leaves out groups that take a list.
    several = [group for group, default in catalog.defaults.items() if isinstance(default, list)]
    lists = {group: [name for name, node in cfg[group].items() if "_target_" in node] for group in several}
    mine = {group: option for group, option in chosen.items() if not group.startswith("hydra/")} | lists
    return dict(sorted(mine.items()))


def _one_sentence(error: BaseException) -> str:
    """Hydra's many lines in one, without its advice to use +, and with the cause it hides."""
    cause = error.__cause__ or error.__context__
    lines = [*str(error).splitlines(), *(str(cause).splitlines()[:1] if cause else [])]
    end = next((i for i, line in enumerate(lines) if line.startswith("Config search path")), len(lines))
    kept = [line.strip().rstrip(".:;") for line in lines[:end] if line.strip() and "To append" not in line]
    return "the configuration can't be composed: " + "; ".join(kept) + "."
