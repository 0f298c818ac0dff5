"""The SLURM launcher: runs become tasks of job arrays, which submitit submits and requeues."""

import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.check import build_all, parts
from newllm.sweep.display import Display
from newllm.sweep.policy import Policy
from newllm.sweep.record import begin
from newllm.sweep.slurm_array import Array, arrays, devices, resources
from newllm.sweep.slurm_follow import follow
from newllm.sweep.slurm_submit import largest_array, submit
from newllm.sweep.slurm_task import Task
from newllm.sweep.snapshot import snapshot


class Slurm:
    """Starts runs as SLURM jobs. The options are those of conf/hydra/launcher/slurm.yaml.

    Args:
        partition, account, qos: as sbatch takes them; None leaves the choice to the cluster.
        gpus: GPUs of a job; None for a job on CPUs. A job with a run of more trainer.devices gets as many as these.
        cpus: cores of a job; on CPUs, for each of trainer.devices.
        mem_gb: memory of a job; None: what the cluster gives.
        time_min: time limit of a job in minutes.
        runs_per_job: runs that a job does, side by side as far as its GPUs or cores allow, else one after another.
        jobs_per_gpu: runs that share a GPU.
        max_running: jobs at a time, over all arrays of the launch; None: as many as the cluster allows.
        max_requeues: how often a job may go back to the queue, after its time limit or preemption.
        signal_delay_s: seconds before the time limit at which the runs are asked to save.
        setup: shell lines before the runs, such as ``module load cuda``.
        additional: further options of sbatch, such as {"constraint": "a100", "exclusive": True}.
        wait: stay until all jobs have ended; else return once they are submitted.
    """

    def __init__(
        self,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        gpus: int | None = None,
        cpus: int = 1,
        mem_gb: float | None = None,
        time_min: int = 60,
        runs_per_job: int = 1,
        jobs_per_gpu: int = 1,
        max_running: int | None = None,
        max_requeues: int = 100,
        signal_delay_s: int = 120,
        setup: list[str] | None = None,
        additional: dict[str, Any] | None = None,
        wait: bool = True,
    ) -> None:
        self._options = {name: value for name, value in locals().items() if name != "self"}
        least = {"gpus": 1, "cpus": 1, "time_min": 1, "runs_per_job": 1, "jobs_per_gpu": 1, "max_running": 1}
        for name, lowest in {**least, "max_requeues": 0, "signal_delay_s": 1}.items():
            value = self._options[name]
            if value is not None and value < lowest:
                raise ConfigError(f"hydra.launcher.{name} must be at least {lowest}; {value} was given.")
        if signal_delay_s >= 60 * time_min:
            raise ConfigError(
                f"hydra.launcher.signal_delay_s={signal_delay_s} leaves no time to train within time_min={time_min}; "
                "give fewer seconds or more minutes."
            )
        self.gpus, self.cpus = gpus, cpus
        self.runs_per_job, self.jobs_per_gpu, self.max_running = runs_per_job, jobs_per_gpu, max_running
        self.max_requeues, self.setup, self.wait = max_requeues, list(setup or []), wait
        self._sbatch = {
            "partition": partition,
            "account": account,
            "qos": qos,
            "mem": None if mem_gb is None else f"{round(mem_gb * 1024)}M",
            "time": time_min,
            "signal_delay_s": signal_delay_s,
            "additional_parameters": dict(additional or {}),
        }

    def check(self, sweep: Path, configs: Iterable[Mapping[str, Any]]) -> None:
        """ConfigError on a machine that cannot submit, or if a part of these configurations cannot be built."""
        _refuse_without_slurm()
        build_all(parts(configs))

    def start(self, sweep: Path, runs: Sequence[Path], policy: Policy) -> int:
        """Submit the frozen `runs` of the folder `sweep` and, with `wait`, follow them; returns the exit status.

        0: all done or, without `wait`, all submitted. 1: some run is not done. 130: Ctrl-C while waiting; the jobs
        go on. Raises ConfigError, in sbatch's words, if jobs are refused; runs that were not submitted stay queued.
        """
        if not runs:
            return 0
        _refuse_without_slurm()
        with begin(sweep, "slurm", self._options, policy, runs) as record:
            jobs = self._submit(sweep, runs, policy, f"newllm-{record.file.stem}", record.update)
            print(f"Submitted {_count(len(runs), 'run')} as {_count(len(jobs), 'job')}: {', '.join(jobs)}.")
            where = shlex.quote(str(sweep))
            print(f"newllm status {where} shows them, and with --cancel ends them.", flush=True)
            if not self.wait:
                return 0
            display = Display(sweep, runs)
            try:
                with display.shown(min(self.max_running or len(runs), len(runs))):
                    return int(not follow(runs, display))
            except KeyboardInterrupt:
                print(f"The jobs go on; newllm status {where} --cancel ends them.")
                return 130

    def _submit(
        self, sweep: Path, runs: Sequence[Path], policy: Policy, name: str, note: Callable[..., None]
    ) -> list[str]:
        """Submit the canary, if there is to be one, and the arrays; returns the ids of the jobs."""
        need = [devices(RunDirectory(run).config()) for run in runs]
        first = int(policy.canary and len(runs) > 1)
        planned = [Array(((0,),), need[0], cap=1)] * first
        together = max(self.runs_per_job, policy.pack if isinstance(policy.pack, int) else 1)
        planned += arrays(need[first:], together, largest_array(), self.max_running, first_run=first)
        code = snapshot(sweep)
        jobs: list[str] = []
        for array in planned:
            tasks = [self._task(sweep, name, [runs[run] for run in numbers], policy) for numbers in array.tasks]
            after = [f"afterok:{jobs[0]}"] if first and jobs else []
            after += [f"afterany:{jobs[first + array.after]}"] if array.after is not None else []
            gpus, cpus = resources(array.devices, self.gpus, self.cpus)
            options = {
                **self._sbatch,
                "job_name": name,
                "gpus_per_node": gpus,
                "cpus_per_task": cpus,
                "array_parallelism": array.cap,
                "dependency": ",".join(after) or None,
            }
            try:
                ids = submit(tasks, sweep, code, self.setup, options)
            except ConfigError as error:
                if not jobs:
                    raise
                raise ConfigError(f"{error} What was submitted before, jobs {', '.join(jobs)}, goes on.") from None
            for task, job in zip(tasks, ids, strict=True):
                for run in task.runs:
                    RunDirectory(run).update_status(durable=False, slurm=job)
            jobs.append(ids[0].split("_")[0])
            note(slurm_jobs=jobs)
        return jobs

    def _task(self, sweep: Path, name: str, runs: Sequence[Path], policy: Policy) -> Task:
        paths = tuple(str(run.resolve()) for run in runs)
        return Task(str(sweep.resolve()), name, paths, policy, self.jobs_per_gpu, self.max_requeues)


def _refuse_without_slurm() -> None:
    for program in ("sbatch", "srun", "scontrol", "squeue"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"hydra/launcher=slurm needs SLURM's {program}, which is not on this machine's PATH; submit on a "
                "machine of the cluster, or leave the launcher out to use this machine."
            )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
