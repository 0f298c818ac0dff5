"""`python -m newllm.train key=value …`: compose a configuration, validate it, run it; with -m, several of them."""

import argparse
import re
import sys
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.catalog import shipped
from newllm.config.compose import catalog_for, compose, search_path, version_base
from newllm.config.overrides import parse
from newllm.errors import ConfigError, run_command
from newllm.runtime import Place
from newllm.suggest import did_you_mean


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); returns the exit status."""
    return run_command(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    args = _Parser().parse_intermixed_args(argv)
    if args.help:
        from newllm.config.help import page

        print(page(catalog_for(args.config_dir)))
        return 0
    if args.shell_completion:
        return _hand_to_hydra(argv)
    if (args.resolve or args.package) and not args.cfg:
        raise ConfigError("--resolve and --package say how --cfg prints; add --cfg job.")
    given = {line.lstrip("+").partition("=")[0].removeprefix("sweep.") for line in args.overrides}
    flags = ["--multirun"] if args.multirun and "hydra/sweeper" in given else []  # one that searches: Hydra drives
    if args.cfg in ("hydra", "all"):
        flags = ["--cfg", args.cfg, *(["--package", args.package] if args.package else [])]
    if flags:
        overrides = parse(args.overrides, catalog_for(args.config_dir), sweep=args.multirun).for_hydra()
        return _hand_to_hydra([*flags, *search_path(args.config_dir), *overrides])
    place = Place.from_environment()
    if not args.cfg and (args.multirun or given & {"hydra/launcher", "dry_run"}):
        from newllm.sweep.command import run_sweep

        if place.launched:
            raise ConfigError(
                "torchrun and srun start the processes of a single run, and a sweep starts those of its runs itself; "
                "leave torchrun out and type trainer.devices=N."
            )
        return run_sweep(args.overrides, config_dir=args.config_dir, several=args.multirun)
    overrides = list(args.overrides)
    if place.launched and "trainer.devices" not in given:
        overrides.append(f"trainer.devices={place.size}")
    cfg = compose(overrides, config_dir=args.config_dir)
    if args.cfg:
        print(_show(cfg, args.package, args.resolve), end="")
        return 0
    from newllm.run.execute import run

    return run(cfg)


class _Parser(argparse.ArgumentParser):
    """The flags of Hydra's own programs that serve here too."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.add_argument("overrides", nargs="*")
        self.add_argument("--help", "-h", action="store_true")
        self.add_argument("--multirun", "-m", action="store_true")
        self.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
        self.add_argument("--resolve", action="store_true")
        self.add_argument("--package", "-p")
        self.add_argument("--config-dir", "-cd")
        self.add_argument("--shell-completion", "-sc", action="store_true")

    def error(self, message: str) -> NoReturn:
        unknown = next((word for word in re.split(r"[\s=/:]+", message) if word.startswith("-")), "")
        if unknown in ("--config-path", "--config-name"):
            raise ConfigError(f"{unknown} is not supported; --config-dir FOLDER adds YAML files of your own.")
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        known = not unknown.startswith("--") or unknown in flags
        raise ConfigError(f"{message}; {'--help shows the usage' if known else did_you_mean(unknown, flags)}.")


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


def _run(cfg: DictConfig) -> int:
    """What Hydra's main asks for and our launchers, which run frozen directories, never call."""
    raise AssertionError


def _hand_to_hydra(argv: list[str]) -> int:
    """Hydra's own main on our folder of YAML files; it reads sys.argv and ends with sys.exit."""
    import hydra

    own = sys.argv
    sys.argv = [own[0] if own[0].endswith("newllm") else "newllm", *argv]
    try:
        hydra.main(str(shipped()), "train", **version_base())(_run)()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = own


if __name__ == "__main__":
    raise SystemExit(main())
