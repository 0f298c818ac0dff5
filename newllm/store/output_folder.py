"""Refuses to put results where other files are: into a text's folder, into that of something else, around newllm."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from newllm.config.identity import places
from newllm.errors import ConfigError
from newllm.store.run_directory import is_run
from newllm.suggest import listed

_OF_AN_EARLIER_ATTEMPT = (".lock", ".tmp", ".end")  # all that a run stopped before its config.yaml leaves


def check_run_folder(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Raises ConfigError unless `folder`, named by hydra.run.dir, is new, empty, or a run directory."""
    _check("hydra.run.dir", Path(folder), [config], is_run)


def check_sweep_folder(folder: str | Path, configs: Iterable[Mapping[str, Any]]) -> None:
    """Raises ConfigError unless `folder`, named by hydra.sweep.dir, is new, empty, a sweep, or a folder of sweeps."""

    def holds_runs(path: Path) -> bool:
        return (path / ".sweep").is_dir() or any(
            next(path.glob(pattern), None) is not None for pattern in ("*/config.yaml", "*/*/config.yaml")
        )

    _check("hydra.sweep.dir", Path(folder), configs, holds_runs)


def _check(key: str, folder: Path, configs: Iterable[Mapping[str, Any]], is_ours: Callable[[Path], bool]) -> None:
    advice = f"name a new folder, as {key}=outputs/mine, or leave {key} out."
    try:
        real = folder.expanduser().resolve()
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        ours = is_ours(folder)
    except (OSError, ValueError, RuntimeError) as error:  # unreadable; NUL in the name; links that go round
        raise ConfigError(f"{key}={folder} cannot be used ({error}); {advice}") from None
    if Path(__file__).resolve().parent.is_relative_to(real):
        raise ConfigError(f"{key}={folder} contains newllm itself; {advice}")
    read = {(option, os.path.expanduser(path)) for config in configs for option, path, _ in places(config)}
    for option, path in sorted(read):
        if os.path.exists(path) and real.exists() and os.path.samefile(path, real):
            raise ConfigError(f"{key}={folder} is what {option} reads; {advice}")
    others = [name for name in names if not name.endswith(_OF_AN_EARLIER_ATTEMPT)]
    if others and not ours:
        raise ConfigError(f"{key}={folder} holds files of something else ({listed(others, 3)}); {advice}")
