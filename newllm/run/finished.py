"""A finished run, as an evaluation finds it."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory


def finished_run(path: str | os.PathLike[str]) -> RunDirectory:
    """The run in the directory `path`. ConfigError unless it is done and can be written to."""
    run = RunDirectory(path)
    config = run.config()
    if not config:
        raise ConfigError(f"{path} is no run directory, since it has no config.yaml; runs are in outputs/runs.")
    if run.trained is not run:
        typed = shlex.join(next((line["overrides"] for line in reversed(run.evaluated())), []))
        raise ConfigError(
            f"{path} is an evaluation of another run; type newllm evaluate {run.trained.path} {typed} rerun=true to "
            "see its numbers again."
        )
    if not run.is_done():
        raise ConfigError(f"{path} is not done but {run.observed()}; the command that started it goes on with it.")
    if not os.access(run.path, os.W_OK):
        raise ConfigError(f"{path} can't be written to, so it can't take results; copy it, and evaluate the copy.")
    return run


def stored(run: RunDirectory) -> dict[str, Any]:
    """The run's effective configuration; a path in it is followed from the folder that training was started in."""
    config, noted = run.config(), environment(run)
    data = dict(config["data"])
    for key in ("path", "tokenizer"):
        if isinstance(data.get(key), str) and not Path(data[key]).expanduser().exists():
            there = Path(noted.get("folder", ".")) / data[key]
            data[key] = str(there) if there.exists() else data[key]
    return {**config, "data": data}


def environment(run: RunDirectory) -> dict[str, Any]:
    """What the run noted of code and machine, {} if nothing."""
    file = run.environment_file
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
