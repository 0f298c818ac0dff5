"""A finished run and what it is to be evaluated under; planned without torch."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from newllm.config.reevaluation import Evaluation, evaluation
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory


def plan_evaluation(
    path: str | os.PathLike[str], overrides: Sequence[str], config_dir: str | Path | None = None, apart: bool = False
) -> tuple[RunDirectory, Evaluation]:
    """The run in the directory `path` and its evaluation. ConfigError unless it is done and can be written to."""
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
    data = dict(config["data"])
    started_in = Path(run.environment().get("folder", "."))
    for key in ("path", "tokenizer"):  # relative to the folder that training was started in
        if isinstance(data.get(key), str) and not Path(data[key]).expanduser().exists():
            data[key] = str(started_in / data[key]) if (started_in / data[key]).exists() else data[key]
    return run, evaluation({**config, "data": data}, overrides, config_dir, apart)
