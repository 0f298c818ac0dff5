"""The SLURM launcher: runs become tasks of job arrays that submitit submits and requeues."""

import io
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newllm.errors import ConfigError, RunError
from newllm.store import code_digest
from newllm.store.run_directory import RunDirectory
from newllm.streams import go_on_without_output
from newllm.sweep.check import build_all, parts
from newllm.sweep.display import Display, plural
from newllm.sweep.launches import Policy, recorded
from newllm.sweep.slurm_job import Task
from newllm.sweep.slurm_states import GONE, LOGS, ask, error_text, job_states, meaning
from newllm.sweep.snapshot import python_path
from newllm.sweep.state import RunState, read_state, write_state
from newllm.trust import VARIABLE, named

if TYPE_CHECKING:
    from submitit import SlurmExecutor

TICK = 1.0  # seconds between looks at the run directories
ASK_TICKS = 5  # between queries of SLURM
_USUAL_REASONS = ("Priority", "Resources", "JobArrayTaskLimit", "Dependency", "BeginTime")  # not reported

# submitit requeues a job on SIGUSR2, which must not kill Python while it is still starting.
_PYTHON = """sh -c 'trap "" USR2; exec "$0" -P "$@"' {}"""


class Slurm:
    """Starts runs as SLURM jobs. conf/hydra/launcher/slurm.yaml explains the options."""

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

    def check(self, sweep: Path, configs: Iterable[Mapping[str, Any]]) -> dict[int, str]:
        """Place of each configuration that cannot be built -> why. Raises ConfigError if this machine cannot submit
        jobs."""
        _require_slurm()
        return build_all(parts(configs))

    def start(self, sweep: Path, runs: Sequence[Path], policy: Policy) -> int:
        """Submit the frozen `runs` of the folder `sweep` and, with `wait`, follow them; returns the exit status.

        0: all done or, without `wait`, all submitted. 1: some run is not done. 130: Ctrl-C while waiting; the jobs
        continue. Raises ConfigError with the message of sbatch if jobs are refused; runs that were not submitted stay
        queued.
        """
        if not runs:
            return 0
        _require_slurm()
        go_on_without_output()
        with recorded(sweep, "slurm", self.options, policy, runs) as record:
            jobs: list[str] = []
            try:
                for job in self._submit(sweep, runs, policy):
                    jobs.append(job)
                    record(slurm_jobs=jobs)
            except ConfigError as error:
                before = f" The jobs submitted before, {', '.join(jobs)}, continue." if jobs else ""
                raise ConfigError(f"{error}{before}") from None
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

    def _submit(self, sweep: Path, runs: Sequence[Path], policy: Policy) -> Iterator[str]:
        """Submit the canary, if any, and then the other runs; yields the id of each job or array."""
        from submitit import SlurmExecutor

        options, name = self.options, f"newllm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        python = _PYTHON.format(shlex.quote(sys.executable))
        executor = SlurmExecutor(sweep.resolve() / LOGS, max_num_timeout=sys.maxsize, python=python)
        executor.update_parameters(
            job_name=name,
            mem=None if options["mem_gb"] is None else f"{round(options['mem_gb'] * 1024)}M",
            time=options["time_min"],
            nodes=1,
            ntasks_per_node=1,
            wckey=None,  # clusters that use wckeys would refuse submitit's
            setup=[*(options["setup"] or []), *_code_of(sweep)],
            # Some clusters requeue only on request; a job whose dependency failed would otherwise wait for ever.
            additional_parameters={"requeue": True, "kill-on-invalid-dep": "yes", **(options["additional"] or {})},
            **{key: options[key] for key in ("partition", "account", "qos", "signal_delay_s")},
        )

        def submit(tasks: Sequence[Sequence[Path]], devices: int, after: Sequence[str]) -> str:
            """Submit one array: the runs of each task, and how many processes each run has; returns its id."""
            gpus, cpus = resources(devices, options["gpus"], options["cpus"])
            executor.update_parameters(
                gpus_per_node=gpus,
                cpus_per_task=cpus,
                srun_args=[f"--cpus-per-task={cpus}"],  # srun does not inherit it from sbatch
                array_parallelism=min(options["max_running"] or len(tasks), len(tasks)),
                dependency=",".join(after) or None,
            )
            callables = [
                Task(
                    sweep=str(sweep.resolve()),
                    name=name,
                    runs=[str(run.resolve()) for run in task],
                    policy=replace(policy, canary=False),
                    jobs_per_gpu=options["jobs_per_gpu"],
                    requeues=options["max_requeues"],
                )
                for task in tasks
            ]
            ids = _sbatch(executor, callables)
            for task, job in zip(tasks, ids, strict=True):
                for run in task:
                    with suppress(ConfigError), RunDirectory(run).locked() as directory:  # else the job has begun
                        directory.update_status(durable=False, slurm=job)
            return ids[0].split("_")[0]

        devices = {run: int((RunDirectory(run).config().get("trainer") or {}).get("devices") or 1) for run in runs}
        canary = previous = None
        if policy.canary and len(runs) > 1:
            canary = submit([[runs[0]]], devices.pop(runs[0]), [])
            yield canary
        runs_per_job = max(options["runs_per_job"], policy.pack if isinstance(policy.pack, int) else 1)
        for need, tasks in arrays(devices, runs_per_job, _largest_array()):
            after = [f"afterok:{canary}"] if canary else []
            if options["max_running"] and previous:  # the arrays run one after another
                after.append(f"afterany:{previous}")
            previous = submit(tasks, need, after)
            yield previous


def _code_of(sweep: Path) -> list[str]:
    """Lines of a job's script: they check the copy of the code when the job starts, and let Python import it."""
    path = python_path(sweep)
    copy, check = path.partition(os.pathsep)[0], Path(code_digest.__file__).read_text(encoding="utf-8")
    return [
        f"{shlex.quote(sys.executable)} -I -c {shlex.quote(check)} {shlex.quote(copy)} || exit 1",
        f"export PYTHONPATH={shlex.quote(path)} {VARIABLE}={shlex.quote(','.join(named()))}",
    ]


def arrays(devices: Mapping[Path, int], runs_per_job: int, largest: int) -> list[tuple[int, list[list[Path]]]]:
    """Job arrays of at most `largest` tasks for runs that need these numbers of `devices`.

    Each array is the number of devices that its runs need, and the runs of each task.
    """
    found = []
    for need in dict.fromkeys(devices.values()):
        runs = [run for run, its_need in devices.items() if its_need == need]
        tasks = [runs[i : i + runs_per_job] for i in range(0, len(runs), runs_per_job)]
        found += [(need, tasks[i : i + largest]) for i in range(0, len(tasks), largest)]
    return found


def resources(devices: int, gpus: int | None, cpus: int) -> tuple[int | None, int]:
    """(GPUs, cores) of a job whose runs train with `devices` processes each.

    With GPUs, at least one for each process; without, `cpus` cores for each.
    """
    return (max(gpus, devices), cpus) if gpus else (None, cpus * devices)


def follow(runs: Sequence[Path], display: Display) -> bool:
    """Wait until the jobs of all `runs` have ended and report to the display; returns True if all runs are done.

    Reads only the files of runs whose jobs are running, so that ten thousand waiting ones cost nothing.
    """
    left = {run: str(RunDirectory(run).status().get("slurm")) for run in runs}  # run -> job
    running: set[Path] = set()
    job_state: dict[str, str] = {}  # job -> its latest state in SLURM
    missing: set[str] = set()  # jobs that SLURM did not list
    explained: set[str] = set()
    all_done = True
    for tick in count():
        if tick % ASK_TICKS == 0:
            jobs = set(left.values())
            try:
                found = job_states(jobs)
            except RunError as error:
                display.note(f"{error}; trying again.")
            else:
                missing_before, missing = missing, jobs - set(found)
                job_state = found | {job: GONE if job in missing_before else "RUNNING" for job in missing}
                for reason, number in Counter(filter(_is_unusual, found.values())).items():
                    if reason not in explained:
                        explained.add(reason)
                        display.note(f"{plural(number, 'job')} {reason}: squeue(1) explains the reason.")
        for run, job in list(left.items()):
            means = meaning(job_state.get(job))
            if means is None or (means == "waiting" and run not in running):
                continue
            ended = means in ("broken", "ended")
            now = settle(RunDirectory(run), job_state) if ended else read_state(RunDirectory(run), job_state)
            to_evaluate = now.state == "done" and RunDirectory(run).waits()
            if ended or (now.state == "done" and not to_evaluate):
                del left[run]
                running.discard(run)
                state = "failed" if to_evaluate or now.state == "unreadable" else now.state
                all_done = all_done and state == "done"
                display.ended(run, state, now.error, again=False)
            elif now.state == "running" and run not in running:
                running.add(run)
                display.started(run)
            elif now.state == "queued" and run in running:  # its job was requeued
                running.discard(run)
                display.ended(run, "interrupted", None, again=True)
        display.tick()
        if not left:
            break
        time.sleep(TICK)
    return all_done


def settle(run: RunDirectory, job_state: Mapping[str, str]) -> RunState:
    """The state of a run whose job has ended. If the run has not recorded why, the state of the job goes into its
    status.json."""
    now, status = read_state(run, job_state), run.status()
    recorded_end = status.get("state"), status.get("error")
    if now.state in ("failed", "interrupted") and recorded_end != (now.state, now.error):
        write_state(run, "failed" if now.state == "failed" else "interrupted", now.error)
    return now


def _is_unusual(job_state: str) -> bool:
    """Whether a job waits for a reason that its user should know, such as ``PENDING (JobHeldUser)``."""
    waits = meaning(job_state) == "waiting" and "(" in job_state
    return waits and not any(reason in job_state for reason in _USUAL_REASONS)


def _sbatch(executor: "SlurmExecutor", tasks: Sequence[Task]) -> list[str]:
    """Submit the tasks, as a job array if there are several; returns the job id of each.

    Raises ConfigError with the message of sbatch if it refuses the jobs.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    slurm_conf = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        # sbatch would read options from the variables of a surrounding job. submitit also prints what it raises.
        with clean_env(), redirect_stderr(io.StringIO()):
            os.environ.update(slurm_conf)
            return [str(job.job_id) for job in executor.submit_array(tasks)]
    except (FailedJobError, FailedSubmissionError) as error:
        raise ConfigError(
            f"sbatch refused the jobs: {error_text(str(error))}; the runs are queued; change the options of "
            "hydra.launcher and repeat the command."
        ) from None


def _largest_array() -> int:
    """MaxArraySize of the cluster. Raises ConfigError if SLURM does not answer."""
    try:
        lines = ask("scontrol", "show", "config").splitlines()
    except RunError as error:
        raise ConfigError(f"{error}. The runs are queued; repeat the command once SLURM answers.") from None
    return next(int(line.partition("=")[2]) for line in lines if line.startswith("MaxArraySize"))


def _require_slurm() -> None:
    for program in ("sbatch", "srun", "scontrol", "squeue"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"hydra/launcher=slurm needs SLURM's {program}, which is not on this machine's PATH; submit on a "
                "machine of the cluster, or leave the launcher out to use this machine."
            )
