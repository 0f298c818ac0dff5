"""The interface of a tracker, and what it shows of a run besides metrics."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory


@dataclass(frozen=True)
class Tracked:
    """A run as trackers show it. config: the effective configuration. group: the name of its sweep, if it has one."""

    directory: RunDirectory
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The label `name` of a single run; the folder's name in a sweep, whose runs share that label."""
        return str((self.group is None and self.directory.labels().get("name")) or self.directory.path.resolve().name)

    @property
    def group(self) -> str | None:
        folder = self.directory.path.resolve().parent
        of_sweep = (folder / ".sweep").is_dir() and folder.parts[-2:] != ("outputs", "runs")
        return folder.name if of_sweep else None

    @property
    def tags(self) -> list[str]:
        return [str(tag) for tag in self.directory.labels().get("tags") or []]

    @property
    def notes(self) -> str | None:
        return self.directory.labels().get("notes")


class Logger(ABC):
    """A tracker of one run, which gets each step of metrics.jsonl once (see `Loggers`).

    The constructor only checks its options and raises ConfigError for a wrong one or a missing package. Any later error
    switches the tracker off, and the run goes on.
    """

    def start(self, run: Tracked) -> int:
        """Open the tracker; returns the last step of the run that it has, -1 if none. Called once in an attempt at the
        run, before `log`."""
        return -1

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take all metrics of one step; steps ascend. A value is never nan or infinite."""

    def finish(self, results: Mapping[str, float], tables: Mapping[str, Path]) -> None:
        """Take the numbers of results.json, and the CSV files of tables by their names. Called again when a finished
        run is given further evaluators."""
        return

    @abstractmethod
    def close(self) -> None:
        """Write out what is pending. Called only after `start`. Without `finish` before it, the run was interrupted or
        has failed."""


class NoLogger(Logger):
    """No tracker. metrics.jsonl is always written."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def require(package: str, logger: str) -> None:
    """Raises ConfigError if the package of the tracker `logger` is not installed. Imports nothing."""
    if find_spec(package) is None:
        raise ConfigError(
            f"logger={logger} needs the package {package}, which is not installed; try pip install 'newllm[{logger}]', "
            f"or leave {logger} out"
        )
