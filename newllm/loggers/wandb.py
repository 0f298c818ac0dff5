"""Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from newllm.loggers.logger import Logger, Tracked, require
from newllm.store.atomic import remove


class WandB(Logger):
    """A run on wandb's server, or in the folder wandb of the run directory, for `wandb sync`.

    Results are the run's summary. Offline, a resumed run writes its folder again from the beginning and removes that of
    the earlier attempt; online, the server is asked for the last step.
    """

    def __init__(
        self,
        project: str = "newllm",
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        *,
        directory: Path,
    ) -> None:
        require("wandb", "wandb")
        self.project, self.entity, self.mode, self.directory = project, entity, mode, directory
        self._run: Any = None
        self._exit_code = 1

    def start(self, run: Tracked) -> int:
        import wandb

        mode = self.mode or wandb.setup().settings.mode
        if mode == "online" and not wandb.login(prompt=False):  # init would ask at a terminal
            raise RuntimeError("there is no API key; type wandb login, or logger.wandb.mode=offline")
        identity = run.directory.tracker_id()
        self._run = wandb.init(
            project=self.project, entity=self.entity, mode=mode, dir=str(self.directory), id=identity,
            resume="allow", reinit="create_new", name=run.name, group=run.group, tags=run.tags, notes=run.notes,
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True, init_timeout=60, finish_timeout=60),
        )  # fmt: skip
        if not self._run.offline:
            return self._run.starting_step - 1
        here = Path(self._run.sync_dir)
        for earlier in here.parent.glob(f"offline-run-*-{identity}"):
            if earlier != here:
                remove(earlier)
        return -1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step, commit=True)

    def finish(self, results: Mapping[str, float], tables: Mapping[str, Path]) -> None:
        import wandb

        self._run.summary.update(dict(results))
        for name, file in tables.items():
            self._run.summary[f"tables/{name}"] = wandb.Table(dataframe=pd.read_csv(file))
        self._exit_code = 0

    def close(self) -> None:
        self._run.finish(self._exit_code)
