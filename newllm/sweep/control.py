"""Cancel and retry runs from any shell, through their launcher, their process or SLURM."""

import os
import platform
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from newllm.config.identity import signature
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.launches import Policy, choosing, launches
from newllm.sweep.local import Local
from newllm.sweep.run_names import signature_of
from newllm.sweep.slurm import Slurm
from newllm.sweep.survey import survey
from newllm.sweep.table import plural
from newllm.sweep.worker import ask_to_end

Which = Literal["failed", "interrupted", "all"]
Say = Callable[[str], None]

_IDS_PER_SCANCEL = 500


def cancel(sweep: Path, runs: Sequence[Path], say: Say) -> bool:
    """Stop these runs of the sweep and report to `say`; returns False if some could not be reached.

    Running runs save and end, queued ones become interrupted. The launcher is stopped if all runs of its sweep are
    cancelled, and a SLURM job if all its unfinished runs are.
    """
    names, all_lines = {run.name for run in runs}, survey(sweep)
    lines = [line for line in all_lines if line.name in names]
    reached = True
    asked: set[str] = set()  # names of runs that a launcher or SLURM has been told to end
    if len(lines) == len(all_lines):
        for launch in launches(sweep):
            if launch["alive"] and launch.get("backend") == "local":
                asked |= set(launch.get("runs", []))
                reached = _stop_launcher(launch, say) and reached

    shared_jobs = {line.slurm for line in all_lines if line.attended and line.name not in names}
    in_own_jobs = [line for line in lines if line.slurm and line.attended and line.slurm not in shared_jobs]
    asked |= {line.name for line in in_own_jobs}
    reached = _cancel_jobs(list(dict.fromkeys(str(line.slurm) for line in in_own_jobs)), say) and reached

    runs_per_process = Counter((line.host, line.pid) for line in all_lines if line.state == "running")
    withdrawn = 0
    for line in lines:
        if line.state == "queued" and _withdraw(RunDirectory(line.path)):
            withdrawn += 1
        elif line.state == "queued" or (line.state == "running" and line.name not in asked):
            reached = _stop_run(RunDirectory(line.path), runs_per_process[line.host, line.pid] > 1, say) and reached
    if withdrawn:
        say(f"{plural(withdrawn, 'run')} will not be started.")
    if not asked and not any(line.state in ("queued", "running") for line in lines):
        say(f"Nothing to cancel in {sweep}: no run is queued or running.")
    return reached


def retry(sweep: Path, runs: Sequence[Path], which: Which, say: Say) -> int:
    """Queue the runs in these states again and start them as the sweep was last started; returns the exit status.

    The runs resume from their last checkpoints. which: "failed"; "interrupted" (cut off, cancelled, or queued without
    a living launcher); "all" (both).
    Raises ConfigError, before it queues anything, if a launcher is running or a run is from another version.
    """
    states = {"failed": ("failed",), "interrupted": ("interrupted", "queued")}
    states["all"] = states["failed"] + states["interrupted"]
    with choosing(sweep):
        lines = [line for line in survey(sweep, runs) if line.state in states[which] and not line.attended]
        if not lines:
            say(f"Nothing to retry in {sweep}: no run is {'failed or interrupted' if which == 'all' else which}.")
            return 0
        records = launches(sweep)
        busy = next((record for record in records if record["alive"] and record.get("backend") == "local"), None)
        if busy:
            raise ConfigError(
                f"process {busy['pid']} on {busy['host']} is running {sweep}; wait for it, or stop it with "
                f"newllm status {sweep} --cancel."
            )
        launcher, policy = _launcher_of(records[-1] if records else {"backend": "local", "launcher": {}, "policy": {}})
        directories = [RunDirectory(line.path) for line in lines]
        configs = [_config(directory) for directory in directories]
        for directory, config in zip(directories, configs, strict=True):
            directory.freeze(config)
    say(f"{plural(len(lines), 'run')} of {sweep} {'resumes' if len(lines) == 1 else 'resume'}.")
    return launcher.start(sweep, [directory.path for directory in directories], policy)


def _stop_launcher(launch: Mapping[str, Any], say: Say) -> bool:
    """Send a local launcher SIGINT; returns False if it cannot be reached."""
    if launch["host"] != platform.node():
        say(f"The launcher is process {launch['pid']} on {launch['host']}; type the same command there.")
        return False
    say(f"Asking the launcher, process {launch['pid']}, to stop; its running runs save and end.")
    return _signal(launch["pid"], signal.SIGINT, say)


def _cancel_jobs(jobs: Sequence[str], say: Say) -> bool:
    """Cancel these jobs; returns False if scancel failed."""
    complaints: list[str] = []
    for begin in range(0, len(jobs), _IDS_PER_SCANCEL):
        try:
            done = subprocess.run(["scancel", *jobs[begin : begin + _IDS_PER_SCANCEL]], capture_output=True, text=True)
        except OSError as error:
            complaints = [f"it can't be run here ({error.strerror}); type the same command where SLURM is"]
            break
        complaints += [done.stderr] if done.returncode else []
    if complaints:
        say(f"scancel: {' '.join(' '.join(complaints).split())}")
    elif jobs:
        listed = ", ".join(jobs[:8]) + (f" and {len(jobs) - 8} more" if len(jobs) > 8 else "")
        say(f"Cancelled SLURM's {'job' if len(jobs) == 1 else 'jobs'} {listed}; running runs save and end.")
    return not complaints


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


def _stop_run(directory: RunDirectory, shared: bool, say: Say) -> bool:
    """Ask a run to save and end; returns False if it is on another machine.

    `shared`: its process trains other runs too and must not get a signal.
    """
    if not directory.in_use():
        return True
    if shared:
        say(f"Asking {directory.path.name}, one of a pack, to save and end; the others go on.")
        ask_to_end(directory)
        return True
    status = directory.status()
    name, pid, host = directory.path.name, status.get("pid"), status.get("host")
    if not pid or host != platform.node():
        say(f"{name} is run by process {pid} on {host}; cancel it there.")
        return False
    say(f"Asking {name}, process {pid}, to save and end.")
    return _signal(pid, signal.SIGTERM, say)


def _signal(pid: int, signum: signal.Signals, say: Say) -> bool:
    """Send a signal; returns False, and says why, if that is not allowed. An ended process counts as reached."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass
    except PermissionError:
        say(f"Process {pid} belongs to another user, who has to stop it.")
        return False
    return True


def _config(directory: RunDirectory) -> dict[str, Any]:
    """The frozen configuration. Raises ConfigError if this version of newllm gives it another signature."""
    config = directory.config()
    mark = signature_of(directory.path.name)
    if not config or (mark and signature(config) != mark):
        raise ConfigError(
            f"{directory.path} can't be resumed, since its configuration is from another version of newllm or its data "
            "have changed; type the training command again."
        )
    return config


def _launcher_of(record: Mapping[str, Any]) -> tuple[Local | Slurm, Policy]:
    """The launcher and the policy of an earlier launch."""
    try:
        launcher = {"local": Local, "slurm": Slurm}[record["backend"]]
        return launcher(**record["launcher"]), Policy(**record["policy"])
    except (KeyError, TypeError):
        raise ConfigError(
            f"{record.get('file')} is from another version of newllm; type the training command again."
        ) from None
