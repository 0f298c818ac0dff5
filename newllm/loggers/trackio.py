"""Trackio: local-first, with a dashboard on this machine or in a space of the Hugging Face hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from newllm.loggers.logger import Logger, Tracked, require


class Trackio(Logger):
    """A run in trackio's database ($TRACKIO_DIR), or in a space. The database says which step it has.

    Trackio identifies a run by its name alone, so the name ends with the eight digits of `tracker_id`. Results and
    tables are a row after the last step, one more for each later evaluation.
    """

    def __init__(self, project: str = "newllm", space_id: str | None = None) -> None:
        require("trackio", "trackio")
        self.project, self.space_id = project, space_id
        self._run: Any = None

    def start(self, run: Tracked) -> int:
        import trackio

        about = {"tags": run.tags, "notes": run.notes, **run.config}
        name = f"{run.name}-{run.directory.tracker_id()}"
        self._run = trackio.init(
            project=self.project, name=name, group=run.group, space_id=self.space_id, config=about, resume="allow",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        return self._run._next_step - 1  # what it continues with by itself

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, results: Mapping[str, float], tables: Mapping[str, Path]) -> None:
        import trackio

        shown = {f"tables/{name}": trackio.Table(dataframe=pd.read_csv(file)) for name, file in tables.items()}
        self._run.log({f"results/{name}": value for name, value in results.items()} | shown)

    def close(self) -> None:
        self._run.finish()
