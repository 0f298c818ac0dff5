"""Hydra's contract for launchers, met by planning and freezing the batch that a sweeper hands over."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from newllm.errors import RunError
from newllm.sweep.launches import Policy

OBJECTIVE = "val/loss"  # what a sweeper that searches gets back of a run, to be minimised


class Adapter(Launcher):
    """`launch` for any backend with `start(sweep, runs, policy)`."""

    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    @abstractmethod
    def start(self, sweep: Path, runs: list[Path], policy: Policy) -> int: ...

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch; a run that is done already is not run again. The runs' value is their validation loss."""
        from newllm.build import build
        from newllm.config.many import compose_many
        from newllm.store.run_directory import RunDirectory
        from newllm.sweep.plan import plan

        settings = build(self.config.sweep)
        folder = Path(self.config.hydra.sweep.dir)
        composed = compose_many([list(lines) for lines in job_overrides], config_dir=self._config_dir())
        planned = plan([run.config for run in composed], folder, settings.rerun)
        runs = planned.freeze(afresh=settings.rerun == "all")
        if runs:
            self.start(folder, runs, settings.policy)
        paths = {job.signature: job.path for job in planned.jobs}
        return [self._result(lines, run.config, RunDirectory(self._path(run.config, paths)))
                for lines, run in zip(job_overrides, composed, strict=True)]  # fmt: skip

    def _config_dir(self) -> str | None:
        sources = OmegaConf.to_container(self.config.hydra.searchpath)
        folders = [str(source).removeprefix("file://") for source in sources or []]
        return folders[0] if folders else None

    @staticmethod
    def _path(config: Any, paths: dict[str, Path]) -> Path:
        from newllm.config.identity import signature

        return paths[signature(config)]

    @staticmethod
    def _result(lines: Sequence[str], config: Any, directory: Any) -> JobReturn:
        done = directory.observed() == "done"
        result = JobReturn(overrides=list(lines), cfg=OmegaConf.create(dict(config)))
        result.status = JobStatus.COMPLETED if done else JobStatus.FAILED
        said = directory.status().get("error") or f"it is {directory.observed()}"
        result.return_value = directory.results()[OBJECTIVE] if done else RunError(f"{directory.path}: {said}")
        return result
