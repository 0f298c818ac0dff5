"""newllm's launchers as Hydra launchers: `hydra/launcher=local` and `hydra/launcher=slurm`.

`newllm train -m` plans its sweep itself and calls `start`. A sweeper of another package (`hydra/sweeper=…`) calls
`launch` with one batch of runs. Every Hydra program of the environment imports this module when it starts, so it
imports nothing heavy.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from newllm.errors import RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy
from newllm.sweep.local import Local
from newllm.sweep.slurm import Slurm

OBJECTIVE = "val/loss"  # what a sweeper that searches minimises


class Adapter(Launcher):
    """Implements Hydra's launcher interface: plans and freezes the batch of a sweeper, then starts it."""

    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    @abstractmethod
    def check(self, sweep: Path, configs: Iterable[Mapping[str, Any]]) -> dict[int, str]: ...

    @abstractmethod
    def start(self, sweep: Path, runs: list[Path], policy: Policy) -> int: ...

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Execute a batch, except for runs that are done already. The value of a run is its validation loss."""
        from newllm.build import build
        from newllm.config.compose import compose_many, labels_of
        from newllm.config.identity import signature
        from newllm.sweep.command import Sweep
        from newllm.sweep.plan import by_signature, plan

        settings = build(self.config.sweep, Sweep)
        sources = OmegaConf.to_container(self.config.hydra.searchpath) or []
        config_dir = next((str(source).removeprefix("file://") for source in sources), None)
        configs = [run.config for run in compose_many([list(lines) for lines in job_overrides], config_dir=config_dir)]
        planned = plan(by_signature(configs), Path(self.config.hydra.sweep.dir), settings.rerun)
        if planned.wanted:
            invalid = self.check(planned.sweep, [run.config for run in planned.wanted])
            planned = planned.without(invalid, settings.skip_invalid)
        runs = planned.freeze(afresh=settings.rerun == "all", labels=labels_of(self.config))
        if runs:
            self.start(planned.sweep, runs, settings.policy)
        paths = {run.signature: run.path for run in planned.runs}
        return [
            _result(lines, config, RunDirectory(paths[signature(config)]))
            for lines, config in zip(job_overrides, configs, strict=True)
        ]


def _result(lines: Sequence[str], config: Mapping[str, Any], directory: RunDirectory) -> JobReturn:
    done = directory.is_done()
    reason = directory.status().get("error") or f"it is {directory.observed()}"
    result = JobReturn(overrides=list(lines), cfg=OmegaConf.create(dict(config)))
    result.status = JobStatus.COMPLETED if done else JobStatus.FAILED
    result.return_value = directory.results()[OBJECTIVE] if done else RunError(f"{directory.path}: {reason}")
    return result


class LocalLauncher(Local, Adapter):
    """Slots of this machine, one process per run."""


class SlurmLauncher(Slurm, Adapter):
    """Job arrays of a SLURM cluster, through submitit."""
