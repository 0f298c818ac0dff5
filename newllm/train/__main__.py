"""`python -m newllm.train key=value …`: compose a configuration, validate it, run it; with -m, several of them."""

import json
import sys
from collections.abc import Collection
from textwrap import shorten
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.catalog import Catalog, shipped
from newllm.config.compose import catalog_for, compose, version_base
from newllm.config.explain import explain
from newllm.config.overrides import parse
from newllm.errors import ConfigError, Parser, run_command
from newllm.runtime import Place
from newllm.suggest import did_you_mean

USAGE = """\
Train a small language model, evaluate it, and leave a run directory.

  newllm train [CHOICE=NAME …] [AXIS=VALUE …] [GROUP.OPTION=VALUE …] [flags]     (or python -m newllm.train …)

Examples
  newllm train                                                  the default run, minutes on a laptop's CPU
  newllm train pos_encoding=alibi attention=mla kv_dim=64       other choices, another axis value
  newllm train data=text data.path=FILE_OR_FOLDER               your own text
  newllm train -m pos_encoding=rope,alibi seeds=3               a sweep: six runs; with dry_run=true, their plan
  newllm train attention=mla --cfg job                          show the configuration, run nothing"""

FLAGS = """\
Flags
  -m, --multirun        sweep over a=1,2 or 'a=range(1,4)'
  --help                with choices, as in newllm train attention=mla --help: their options, defaults and meaning
  --cfg job             print the configuration and stop; --resolve fills in references, --package GROUP shows a part
  --config-dir FOLDER   add YAML files of your own, laid out like conf/
  hydra.run.dir=FOLDER  where the run lands (default: outputs/runs/NAME-SIGNATURE); the same command resumes it
  hydra.sweep.dir=FOLDER  where a sweep lands (default: outputs/sweeps/NAME; without name=NAME, the keys that vary)
  HYDRA_FULL_ERROR=1    (environment) show tracebacks"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); returns the exit status."""
    return run_command(_main, argv)


def _main(argv: list[str]) -> int:
    parser = Parser(prog="newllm train", add_help=False, allow_abbrev=False)  # with the flags of Hydra's own programs
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_config_dir()
    args = parser.parse_intermixed_args(argv)
    if args.help:
        catalog = catalog_for(args.config_dir)
        print(explain(args.overrides, catalog) if args.overrides else _help(catalog))
        return 0
    if (args.resolve or args.package) and not args.cfg:
        raise ConfigError("--resolve and --package say how --cfg prints; add --cfg job.")
    given = {line.lstrip("+").partition("=")[0].removeprefix("sweep.") for line in args.overrides}
    flags = ["--multirun"] if args.multirun and "hydra/sweeper" in given else []  # one that searches: Hydra drives
    if args.cfg in ("hydra", "all"):
        flags = ["--cfg", args.cfg, *(["--package", args.package] if args.package else [])]
    if flags:
        catalog = catalog_for(args.config_dir)
        parsed = parse(args.overrides, catalog, sweep=args.multirun)
        overrides = parsed.for_hydra()
        if args.cfg is None:
            from newllm.sweep.command import check_for_other_sweeper, folder_name

            check_for_other_sweeper(parsed)
        if args.cfg is None and "hydra.sweep.dir" not in given:
            overrides.append(f"hydra.sweep.dir='{catalog.sweeps}/{folder_name(parsed) or 'sweep'}'")
        return _hand_to_hydra([*flags, *catalog.search_path, *overrides])
    if not args.multirun and not args.cfg:
        _refuse_options_of_sweeps(given, catalog_for(args.config_dir))
    place = Place.from_environment()
    if not args.cfg and (args.multirun or given & {"hydra/launcher", "dry_run"}):
        from newllm.sweep.command import run_sweep

        if place.launched:
            raise ConfigError(
                "torchrun and srun start the processes of a single run, and a sweep starts those of its runs itself; "
                "leave torchrun out and type trainer.devices=N."
            )
        return run_sweep(args.overrides, config_dir=args.config_dir, several=args.multirun)[1]
    overrides = list(args.overrides)
    if place.launched and "trainer.devices" not in given:
        overrides.append(f"trainer.devices={place.size}")
    cfg = compose(overrides, config_dir=args.config_dir, check=not args.cfg)
    if args.cfg:
        print(_show(cfg, args.package, args.resolve), end="")
        return 0
    from newllm.run.execute import run

    return run(cfg)


def _refuse_options_of_sweeps(given: Collection[str], catalog: Catalog) -> None:
    """Raises ConfigError for a key that would have no effect without -m."""
    launched = not {"hydra/launcher", "dry_run"}.isdisjoint(given)
    of_sweeps = ("hydra/sweeper", "hydra.sweep.dir", *(() if launched else catalog.sweep_options))
    for key in sorted(key for key in given if key in of_sweeps or (key.startswith("hydra.launcher.") and not launched)):
        raise ConfigError(f"{key} is of sweeps, and this is a single run; add -m, or leave {key} out.")


def _help(catalog: Catalog) -> str:
    """Usage, every choice with its description (the default marked ``*``), every axis with its default."""

    def keys(defaults: dict[str, Any]) -> list[str]:
        typed = {key: value if isinstance(value, str) else json.dumps(value) for key, value in defaults.items()}
        return [f"  {f'{key}={value}':<20} {catalog.comments.get(key, '')}".rstrip() for key, value in typed.items()]

    lines = [USAGE, "", "Choices"]
    for group, names in catalog.groups.items():
        default = catalog.defaults.get(group)
        lines.append(f"  {group}=")
        for name in names:
            mark = "*" if name == default or (isinstance(default, list) and name in default) else " "
            description = shorten(catalog.describe(group, name), 100, placeholder=" …", break_on_hyphens=False)
            lines.append(f"   {mark} {name:<18} {description}".rstrip())
    lines += ["", "Axes (root keys that choices refer to)", *keys(catalog.axes)]
    lines += ["", "Labels (by which newllm status finds a run; part of no run)", *keys(catalog.labels)]
    lines += ["", "Sweeps (with -m; not part of a run)", *keys(catalog.sweep_options)]
    lines.append(f"  {'hydra/launcher=local':<20} where runs execute: {', '.join(catalog.launchers)}")
    return "\n".join([*lines, "", FLAGS])


def _show(cfg: DictConfig, package: str | None, resolve: bool) -> str:
    shown = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("overrides", "run_dir", "groups")])
    try:
        if resolve:
            OmegaConf.resolve(shown)
        node = OmegaConf.select(shown, package) if package else shown
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration can't be resolved: {str(error).splitlines()[0]}.") from error
    if node is None:
        raise ConfigError(f"--package {package}: no such node; {did_you_mean(str(package), map(str, shown))}.")
    return OmegaConf.to_yaml(node) if OmegaConf.is_config(node) else f"{node}\n"


def _hand_to_hydra(argv: list[str]) -> int:
    """Hydra's own main with the YAML files of newllm; it reads sys.argv and ends with sys.exit."""
    import hydra

    def task(cfg: DictConfig) -> None:
        raise AssertionError("the launchers of newllm run frozen directories and never call the task")

    task.__module__ = "newllm.train"  # Hydra names the job after it
    own = sys.argv
    sys.argv = [own[0] if own[0].endswith("newllm") else "newllm", *argv]
    try:
        hydra.main(str(shipped()), "train", **version_base())(task)()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = own


if __name__ == "__main__":
    raise SystemExit(main())
