"""Cancel and retry runs from any shell, through their launcher, their process or SLURM; prints what it does."""

import os
import platform
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from newllm.config.identity import signature
from newllm.errors import ConfigError, RunError
from newllm.store.own_code import use_code_of_run
from newllm.store.run_directory import RunDirectory
from newllm.store.run_names import signature_in
from newllm.suggest import listed
from newllm.sweep.display import plural
from newllm.sweep.launches import Policy, choosing, launches, use_code_of_launch
from newllm.sweep.local import Local
from newllm.sweep.slurm import Slurm
from newllm.sweep.slurm_states import ask
from newllm.sweep.state import RunState, read_states
from newllm.sweep.workers import ask_to_end
from newllm.trust import code_folder


def cancel(sweep: Path, runs: Sequence[Path]) -> bool:
    """Stop these runs of the sweep; returns False if some could not be reached.

    Running runs save and stop, queued ones become interrupted. The launcher is stopped if all runs of its sweep are
    cancelled, and a SLURM job if all its unfinished runs are.
    """
    names, all_runs = {run.name for run in runs}, read_states(sweep)
    chosen = [run for run in all_runs if run.name in names]
    reached: list[bool] = []
    stopping: set[str] = set()  # names of runs whose launcher or SLURM job is being stopped
    for launch in launches(sweep) if len(chosen) == len(all_runs) else ():
        if not launch["alive"] or launch.get("backend") != "local":
            continue
        stopping |= set(launch.get("runs", []))
        if launch["host"] == platform.node():
            print(f"Asking the launcher, process {launch['pid']}, to stop; its running runs save and stop.")
            reached.append(_signal(launch["pid"], signal.SIGINT))
        else:
            print(f"The launcher is process {launch['pid']} on {launch['host']}; type the same command there.")
            reached.append(False)

    other_jobs = {run.slurm for run in all_runs if run.attended and run.name not in names}
    jobs = {run.name: run.slurm for run in chosen if run.slurm and run.attended and run.slurm not in other_jobs}
    stopping |= {*jobs}
    if jobs:
        reached.append(_cancel_jobs(list(dict.fromkeys(jobs.values()))))

    runs_of_process = Counter((run.host, run.pid) for run in all_runs if run.state == "running")
    withdrawn = 0
    for run in chosen:
        if run.state == "queued" and _withdraw(RunDirectory(run.path)):
            withdrawn += 1
        elif run.state == "queued" or (run.state == "running" and run.name not in stopping):
            reached.append(_stop_run(run, shared=runs_of_process[run.host, run.pid] > 1))
    if withdrawn:
        print(f"{plural(withdrawn, 'run')} will not be started.")
    if not stopping and not any(run.state in ("queued", "running") for run in chosen):
        print(f"Nothing to cancel in {sweep}: no run is queued or running.")
    return all(reached)


def _signal(pid: int, signum: signal.Signals) -> bool:
    """Send a signal; returns False if that is not allowed. An ended process counts as reached."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass
    except PermissionError:
        print(f"Process {pid} belongs to another user, who has to stop it.")
        return False
    return True


def _cancel_jobs(jobs: Sequence[str]) -> bool:
    """Cancel these SLURM jobs; returns False if scancel failed."""
    try:
        ask("scancel", *jobs)
    except RunError as error:
        print(f"{error}.")
        return False
    print(f"Cancelled SLURM's {'job' if len(jobs) == 1 else 'jobs'} {listed(jobs)}; running runs save and stop.")
    return True


def _withdraw(directory: RunDirectory) -> bool:
    """Mark a queued run as interrupted, so that it does not start; returns False if it has started meanwhile."""
    try:
        with directory.locked():
            if directory.status().get("state", "queued") != "queued":
                return False
            directory.update_status(durable=False, state="interrupted", error="Cancelled before it began.")
            return True
    except ConfigError:  # another process has locked it
        return False


def _stop_run(run: RunState, shared: bool) -> bool:
    """Ask a run to save and stop; returns False if it is on another machine.

    `shared`: its process trains other runs too and must not get a signal.
    """
    directory = RunDirectory(run.path)
    if not directory.in_use():
        return True
    if shared:
        print(f"Asking {run.name}, one of a pack, to save and stop; the others go on.")
        ask_to_end(directory)
        return True
    status = directory.status()  # as it is now: the run may have been queued before
    pid, host = status.get("pid"), status.get("host")
    if not pid or host != platform.node():
        print(f"{run.name} is run by process {pid} on {host}; cancel it there.")
        return False
    print(f"Asking {run.name}, process {pid}, to save and stop.")
    return _signal(pid, signal.SIGTERM)


def retry(sweep: Path, runs: Sequence[Path], which: Literal["failed", "interrupted", "all"]) -> int:
    """Queue the runs in these states again and start them as the sweep was last started; returns the exit status.

    The runs resume from their last checkpoints. which: "failed"; "interrupted" (cut off, cancelled, or queued without
    a living launcher); "all" (both).
    Raises ConfigError, before it queues anything, if a launcher is running or a run is from another version.
    """
    states = {"failed": ("failed",), "interrupted": ("interrupted", "queued")}
    states["all"] = states["failed"] + states["interrupted"]
    none = {"failed": "has failed", "interrupted": "is interrupted", "all": "has failed or is interrupted"}
    with choosing(sweep):
        chosen = [run for run in read_states(sweep, runs) if run.state in states[which] and not run.attended]
        if not chosen:
            print(f"Nothing to retry in {sweep}: no run {none[which]}.")
            return 0
        records = launches(sweep, strict=True)
        busy = next((record for record in records if record["alive"] and record.get("backend") == "local"), None)
        if busy:
            raise ConfigError(
                f"process {busy['pid']} on {busy['host']} is running {sweep}; wait for it, or stop it with "
                f"newllm status {sweep} --cancel."
            )
        launcher, policy = _launcher_of(records[-1]) if records else (Local(), Policy())
        configs = {RunDirectory(run.path): _config(RunDirectory(run.path)) for run in chosen}
        for directory in configs if code_folder() is None else ():  # runs that were started by themselves
            use_code_of_run(directory)
        for directory, config in configs.items():
            directory.freeze(config)
    print(f"{plural(len(chosen), 'run')} of {sweep} {'resumes' if len(chosen) == 1 else 'resume'}.", flush=True)
    return launcher.start(sweep, [directory.path for directory in configs], policy)


def _config(directory: RunDirectory) -> dict[str, Any]:
    """The frozen configuration. Raises ConfigError if this version of newllm gives it another signature."""
    config = directory.config()
    mark = signature_in(directory.path.name)
    if not config or (mark and signature(config) != mark):
        raise ConfigError(
            f"{directory.path} cannot be resumed, since its configuration is from another version of newllm or its "
            "data have changed; type the training command again."
        )
    return config


def _launcher_of(record: Mapping[str, Any]) -> tuple[Local | Slurm, Policy]:
    """The launcher and the policy of an earlier launch."""
    try:
        launcher = {"local": Local, "slurm": Slurm}[record["backend"]]
        use_code_of_launch(record)
        return launcher(**record["launcher"]), Policy(**record["policy"])
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{record.get('file')} is from another version of newllm; type the training command again."
        ) from None
