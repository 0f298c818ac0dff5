"""TensorBoard's event files."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from newllm.analysis.settings import flatten
from newllm.loggers.logger import Logger, Tracked, require


class TensorBoard(Logger):
    """Event files in `folder` of the run directory; written again from the beginning when a run is resumed.

    Configuration and tables are shown as text, results as a line of the page "hparams".
    """

    def __init__(self, folder: str = "tensorboard", *, directory: Path) -> None:
        require("tensorboard", "tensorboard")
        self.folder = directory / folder
        self._step = 0

    def start(self, run: Tracked) -> int:
        from torch.utils.tensorboard import SummaryWriter

        for file in self.folder.glob("events.out.tfevents.*"):
            file.unlink()
        self._writer = SummaryWriter(str(self.folder))
        about = {"name": run.name, "group": run.group, "tags": run.tags, "notes": run.notes, "config": run.config}
        self._writer.add_text("run", f"```\n{json.dumps(about, indent=2, ensure_ascii=False)}\n```")
        options = flatten(run.config).items()
        self._options = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in options}
        return -1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, results: Mapping[str, float], tables: Mapping[str, Path]) -> None:
        named = {f"results/{name}": value for name, value in results.items()}
        self._writer.add_hparams(self._options, named, run_name=".", global_step=self._step)
        for name, file in tables.items():
            table = pd.read_csv(file)
            lines = [table.columns, ["---"] * len(table.columns), *table.astype(str).values]
            self._writer.add_text(f"tables/{name}", "\n".join(f"| {' | '.join(cells)} |" for cells in lines))

    def close(self) -> None:
        self._writer.close()
