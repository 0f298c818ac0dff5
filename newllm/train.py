"""`python -m newllm.train key=value …`: compose a configuration, validate it, run it; with -m, several of them."""

import argparse
import sys
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.cli import guarded
from newllm.config.catalog import shipped
from newllm.config.compose import catalog_for, compose, search_path
from newllm.config.overrides import parse
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); returns the exit status."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    args = _parse(argv)
    if args.help:
        from newllm.config.help import page

        print(page(catalog_for(args.config_dir)))
        return 0
    if args.hydra_help or args.info or args.shell_completion:
        return _hand_to_hydra(argv)
    if args.multirun and _chosen("hydra/sweeper", args.overrides):  # one that searches: Hydra drives, we launch
        return _hand_to_hydra(_for_hydra(args, ["--multirun"]))
    launched = args.multirun or _chosen("hydra/launcher", args.overrides) or _chosen("dry_run", args.overrides)
    if launched and not args.cfg:
        from newllm.sweep.command import run_sweep

        return run_sweep(args.overrides, config_dir=args.config_dir, several=args.multirun)
    cfg = compose(args.overrides, config_dir=args.config_dir)
    if args.cfg == "job":
        print(_show(cfg, args.package, args.resolve), end="")
        return 0
    if args.cfg:
        return _hand_to_hydra(
            _for_hydra(args, ["--cfg", args.cfg, *(["--package", args.package] if args.package else [])])
        )
    from newllm.run.execute import run

    return run(cfg)


def _parse(argv: list[str]) -> argparse.Namespace:
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]

    def error(message: str) -> NoReturn:
        unknown = next((word for word in argv if word.startswith("-") and word.split("=")[0] not in flags), "")
        hint = f"; {did_you_mean(unknown, flags)}" if unknown.startswith("--") else "; --help shows the usage"
        raise ConfigError(f"{message}{hint}.")

    parser.error = error  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(argv)
    for name in ("config_path", "config_name", "experimental_rerun"):
        if getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is not supported; --config-dir FOLDER adds YAML files of your own.")
    if (args.resolve or args.package) and not args.cfg:
        raise ConfigError("--resolve and --package say how --cfg prints; add --cfg job.")
    return args


def _show(cfg: DictConfig, package: str | None, resolve: bool) -> str:
    shown = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("overrides", "run_dir")])
    try:
        if resolve:
            OmegaConf.resolve(shown)
        node = OmegaConf.select(shown, package) if package else shown
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration can't be resolved: {str(error).splitlines()[0]}.") from error
    if node is None:
        raise ConfigError(f"--package {package}: no such node; {did_you_mean(str(package), map(str, shown))}.")
    return OmegaConf.to_yaml(node) if OmegaConf.is_config(node) else f"{node}\n"


def _chosen(key: str, overrides: list[str]) -> bool:
    return any(line.lstrip("+").partition("=")[0].removeprefix("sweep.") == key for line in overrides)


def _run(cfg: DictConfig) -> int:
    """What Hydra's main asks for and our launchers, which run frozen directories, never call."""
    raise AssertionError


def _for_hydra(args: argparse.Namespace, flags: list[str]) -> list[str]:
    overrides = parse(args.overrides, catalog_for(args.config_dir), sweep=args.multirun).for_hydra()
    return [*flags, *search_path(args.config_dir), *overrides]


def _hand_to_hydra(argv: list[str]) -> int:
    """Hydra's own main on our folder of YAML files; it reads sys.argv and ends with sys.exit."""
    import hydra

    own = sys.argv
    sys.argv = [own[0] if own[0].endswith("newllm") else "newllm", *argv]
    try:
        hydra.main(str(shipped()), "train", version_base="1.3")(_run)()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = own


if __name__ == "__main__":
    raise SystemExit(main())
