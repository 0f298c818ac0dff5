"""The SLURM launcher: runs become tasks of job arrays that submitit submits and requeues."""

import io
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError, RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.check import build_all, parts
from newllm.sweep.display import Display, plural
from newllm.sweep.launches import Policy, recorded
from newllm.sweep.slurm_job import Task
from newllm.sweep.slurm_states import GONE, LOGS, ask, error_text, job_states, meaning
from newllm.sweep.snapshot import python_path
from newllm.sweep.state import RunState, read_state, write_state

TICK = 1.0  # seconds
_ASK_TICKS = 5  # between queries of SLURM
_USUAL_REASONS = ("Priority", "Resources", "JobArrayTaskLimit", "Dependency", "BeginTime")  # not reported

# submitit requeues a job on SIGUSR2, which must not kill Python while it is still starting.
_PYTHON = """sh -c 'trap "" USR2; exec "$0" -P "$@"' {}"""


class Slurm:
    """Starts runs as SLURM jobs. The options are those of conf/hydra/launcher/slurm.yaml.

    Args:
        partition, account, qos: options of sbatch; None: the default of the cluster.
        gpus: GPUs per job; None: a job on CPUs. A job gets at least as many GPUs as trainer.devices of its runs.
        cpus: cores per job; without GPUs, per process of trainer.devices.
        mem_gb: memory per job; None: the default of the cluster.
        time_min: time limit of a job in minutes.
        runs_per_job: runs per job, in parallel as far as its GPUs or cores allow, else one after another.
        jobs_per_gpu: runs that share a GPU.
        max_running: concurrent jobs over all arrays of the launch; None: as many as the cluster allows.
        max_requeues: how often a job may be requeued after its time limit or preemption.
        signal_delay_s: how many seconds before the time limit the runs save and end.
        setup: shell lines before the runs, such as ``module load cuda``.
        additional: further options of sbatch, such as {"constraint": "a100", "exclusive": True}.
        wait: wait until all jobs have ended; else return once they are submitted.
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
        self.options: dict[str, Any] = {name: value for name, value in locals().items() if name != "self"}
        least = {"gpus": 1, "cpus": 1, "time_min": 1, "runs_per_job": 1, "jobs_per_gpu": 1, "max_running": 1}
        for name, lowest in {**least, "max_requeues": 0, "signal_delay_s": 1}.items():
            value = self.options[name]
            if value is not None and value < lowest:
                raise ConfigError(f"hydra.launcher.{name} must be at least {lowest}; {value} was given.")
        if signal_delay_s >= 60 * time_min:
            raise ConfigError(
                f"hydra.launcher.signal_delay_s={signal_delay_s} leaves no time to train within time_min={time_min}; "
                "give fewer seconds or more minutes."
            )

    def check(self, sweep: Path, configs: Iterable[Mapping[str, Any]]) -> None:
        """Raises ConfigError if this machine cannot submit jobs or a part of these configurations cannot be built."""
        _require_slurm()
        build_all(parts(configs))

    def start(self, sweep: Path, runs: Sequence[Path], policy: Policy) -> int:
        """Submit the frozen `runs` of the folder `sweep` and, with `wait`, follow them; returns the exit status.

        0: all done or, without `wait`, all submitted. 1: some run is not done. 130: Ctrl-C while waiting; the jobs
        continue. Raises ConfigError with the message of sbatch if jobs are refused; runs that were not submitted stay
        queued.
        """
        if not runs:
            return 0
        _require_slurm()
        with recorded(sweep, "slurm", self.options, policy, runs) as update:
            jobs = self._submit(sweep, runs, policy, update)
            print(f"Submitted {plural(len(runs), 'run')} as {plural(len(jobs), 'job')}: {', '.join(jobs)}.")
            where = shlex.quote(str(sweep))
            print(f"newllm status {where} shows them; with --cancel it ends them.", flush=True)
            if not self.options["wait"]:
                return 0
            display = Display(sweep, runs)
            try:
                with display.shown(min(self.options["max_running"] or len(runs), len(runs))):
                    return int(not follow(runs, display))
            except KeyboardInterrupt:
                print(f"The jobs continue; newllm status {where} --cancel ends them.")
                return 130

    def _submit(self, sweep: Path, runs: Sequence[Path], policy: Policy, update: Callable[..., None]) -> list[str]:
        """Submit the canary, if any, and the arrays; returns the job ids."""
        given = self.options
        configs = [RunDirectory(run).config() for run in runs]
        need = [int((config.get("trainer") or {}).get("devices") or 1) for config in configs]
        canary = int(policy.canary and len(runs) > 1)
        planned = [Array(((0,),), need[0], cap=1)] * canary
        together = max(given["runs_per_job"], policy.pack if isinstance(policy.pack, int) else 1)
        planned += arrays(need[canary:], together, _largest_array(), given["max_running"], first_run=canary)
        path = shlex.quote(python_path(sweep))
        name = f"newllm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        jobs: list[str] = []
        for array in planned:
            after = [f"afterok:{jobs[0]}"] if canary and jobs else []
            after += [f"afterany:{jobs[canary + array.after]}"] if array.after is not None else []
            gpus, cpus = resources(array.devices, given["gpus"], given["cpus"])
            options = {
                **{key: given[key] for key in ("partition", "account", "qos", "signal_delay_s")},
                "mem": None if given["mem_gb"] is None else f"{round(given['mem_gb'] * 1024)}M",
                "time": given["time_min"],
                "job_name": name,
                "nodes": 1,
                "ntasks_per_node": 1,
                "gpus_per_node": gpus,
                "cpus_per_task": cpus,
                "srun_args": [f"--cpus-per-task={cpus}"],  # srun does not inherit it from sbatch
                "array_parallelism": array.cap,
                "dependency": ",".join(after) or None,
                "setup": [*(given["setup"] or []), f"export PYTHONPATH={path}"],
                # Some clusters requeue only on request; a job whose dependency failed would otherwise wait for ever.
                "additional_parameters": {
                    "requeue": True, "kill-on-invalid-dep": "yes", **(given["additional"] or {}),
                },
            }  # fmt: skip
            limits = given["jobs_per_gpu"], given["max_requeues"]
            tasks = [
                Task(str(sweep.resolve()), name, tuple(str(runs[run].resolve()) for run in numbers), policy, *limits)
                for numbers in array.tasks
            ]
            try:
                ids = _sbatch(tasks, sweep, options)
            except ConfigError as error:
                if not jobs:
                    raise
                raise ConfigError(f"{error} The jobs submitted before, {', '.join(jobs)}, continue.") from None
            for task, job in zip(tasks, ids, strict=True):
                for run in task.runs:
                    RunDirectory(run).update_status(durable=False, slurm=job)
            jobs.append(ids[0].split("_")[0])
            update(slurm_jobs=jobs)
        return jobs


@dataclass(frozen=True)
class Array:
    """One array to submit.

    tasks: the numbers of the runs of each task. devices: processes of each run.
    cap: concurrent tasks. after: number of the array that must have ended before.
    """

    tasks: tuple[tuple[int, ...], ...]
    devices: int
    cap: int
    after: int | None = None


def arrays(
    devices: Sequence[int], runs_per_job: int, largest: int, max_running: int | None, first_run: int = 0
) -> list[Array]:
    """The arrays for runs that need these numbers of `devices`, with at most `max_running` concurrent tasks in total.

    Arrays run in parallel with a share of `max_running` each. If there are more arrays than may run, they form lanes,
    in which each array waits for the end of the one before. The arrays of a group have about equal sizes, so that they
    end at about the same time. The first run has the number `first_run`.
    """
    pieces: list[tuple[int, tuple[tuple[int, ...], ...]]] = []
    for need in dict.fromkeys(devices):
        runs = [run for run, its_need in enumerate(devices, first_run) if its_need == need]
        tasks = tuple(tuple(runs[i : i + runs_per_job]) for i in range(0, len(runs), runs_per_job))
        number = -(-len(tasks) // largest)
        bounds = [len(tasks) * i // number for i in range(number + 1)]
        pieces += [(need, tasks[bounds[i] : bounds[i + 1]]) for i in range(number)]
    lanes = min(len(pieces), max_running or len(pieces))
    found = []
    for i, (need, tasks) in enumerate(pieces):
        share = len(tasks) if max_running is None else max_running // lanes + (i % lanes < max_running % lanes)
        found.append(Array(tasks, need, min(share, len(tasks)), i - lanes if i >= lanes else None))
    return found


def resources(devices: int, gpus: int | None, cpus: int) -> tuple[int | None, int]:
    """(GPUs, cores) of a job whose runs train with `devices` processes each.

    With GPUs, at least one for each process; without, `cpus` cores for each.
    """
    return (max(gpus, devices), cpus) if gpus else (None, cpus * devices)


def follow(
    runs: Sequence[Path],
    display: Display,
    ask: Callable[[Iterable[str]], Mapping[str, str]] = job_states,
    seconds: float = TICK,
) -> bool:
    """Wait until the jobs of all `runs` have ended and report to the display; returns True if all runs are done.

    If a job has ended and its run has not recorded why, the state of the job goes into its status.json. Reads only the
    files of runs whose jobs are running, so that ten thousand waiting ones cost nothing.
    """
    left = {run: str(RunDirectory(run).status().get("slurm")) for run in runs}  # run -> job
    running: set[Path] = set()
    job_state: dict[str, str] = {}  # job -> its latest state in SLURM
    unknown: set[str] = set()
    explained: set[str] = set()
    all_done = True
    for tick in count():
        if tick % _ASK_TICKS == 0:
            jobs = set(left.values())
            try:
                found = ask(jobs)
            except RunError as error:
                display.note(f"{error}; trying again.")
            else:
                missing = jobs - set(found)  # counts as gone if it happens twice in a row
                job_state = {**found, **{job: GONE if job in unknown else "RUNNING" for job in missing}}
                unknown = missing
                _explain(Counter(word for word in job_state.values() if meaning(word) == "waiting"), explained, display)
        for run, job in list(left.items()):
            means = meaning(job_state.get(job))
            if means is None or (means == "waiting" and run not in running):
                continue
            over = means in ("broken", "ended")
            line = settle(RunDirectory(run), job_state) if over else read_state(RunDirectory(run), job_state)
            if line.state == "done" or over:
                del left[run]
                running.discard(run)
                all_done = all_done and line.state == "done"
                display.ended(run, "failed" if line.state == "unreadable" else line.state, line.error, again=False)
            elif line.state == "running" and run not in running:
                running.add(run)
                display.started(run)
            elif line.state == "queued" and run in running:  # its job was requeued
                running.discard(run)
                display.ended(run, "interrupted", None, again=True)
        display.tick()
        if not left:
            return all_done
        time.sleep(seconds)
    raise AssertionError


def settle(run: RunDirectory, job_state: Mapping[str, str]) -> RunState:
    """The line of a run whose job has ended. If the run has not recorded why, the state of the job goes into its
    status.json."""
    line, status = read_state(run, job_state), run.status()
    claimed = status.get("state"), status.get("error")
    if line.state in ("failed", "interrupted") and claimed != (line.state, line.error):
        write_state(run, "failed" if line.state == "failed" else "interrupted", line.error)
    return line


def _explain(waiting: Mapping[str, int], explained: set[str], display: Display) -> None:
    """Report each unusual reason for waiting once."""
    for word, number in waiting.items():
        if "(" in word and word not in explained and not any(reason in word for reason in _USUAL_REASONS):
            explained.add(word)
            display.note(f"{plural(number, 'job')} {word}: squeue(1) explains the reason.")


def _sbatch(tasks: Sequence[Task], sweep: Path, options: Mapping[str, Any]) -> list[str]:
    """Submit the tasks, as a job array if there are several; returns the job id of each.

    options: parameters of submitit; those that are None are left out. Raises ConfigError with the message of sbatch if
    it refuses the jobs.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    python = _PYTHON.format(shlex.quote(sys.executable))
    executor = SlurmExecutor(sweep.resolve() / LOGS, max_num_timeout=sys.maxsize, python=python)
    executor.update_parameters(**{key: value for key, value in options.items() if value is not None})
    executor.update_parameters(wckey=None)  # submitit sets one, which clusters that use wckeys would refuse
    slurm_conf = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        # sbatch would read options from the variables of a surrounding job. submitit also prints what it raises.
        with clean_env(), redirect_stderr(io.StringIO()):
            os.environ.update(slurm_conf)
            return [str(job.job_id) for job in executor.submit_array(tasks)]
    except (FailedJobError, FailedSubmissionError) as error:
        raise ConfigError(
            f"sbatch refused the jobs: {error_text(str(error))}; the runs stay queued, so change the options of "
            "hydra.launcher and type the command again."
        ) from None


def _largest_array() -> int:
    """MaxArraySize of the cluster. Raises ConfigError if SLURM does not answer."""
    try:
        lines = ask("scontrol", "show", "config").splitlines()
    except RunError as error:
        raise ConfigError(f"{error}; the runs stay queued, so type the command again when it answers.") from None
    return next(int(line.partition("=")[2]) for line in lines if line.startswith("MaxArraySize"))


def _require_slurm() -> None:
    for program in ("sbatch", "srun", "scontrol", "squeue"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"hydra/launcher=slurm needs SLURM's {program}, which is not on this machine's PATH; submit on a "
                "machine of the cluster, or leave the launcher out to use this machine."
            )
