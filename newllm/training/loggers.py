"""Loggers, which receive the metrics in addition to metrics.jsonl."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError


class Logger(ABC):
    """Base class of loggers."""

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class NoLogger(Logger):
    """No logging except metrics.jsonl."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard(Logger):
    """Event files for TensorBoard, in `folder` of the run directory. Opened with the first metrics."""

    def __init__(self, folder: str = "tensorboard", *, directory: Path) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError(
                "logger=tensorboard needs the package tensorboard, which is not installed; try pip install "
                "tensorboard, or logger=none"
            )
        self.folder = directory / folder
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run repeats steps, so drop what an earlier attempt wrote from this step on.
            self._writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
