"""Stopping runs and starting them again, from any shell: through their launcher, their process, or SLURM."""

import os
import platform
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.outcome import ask_to_end
from newllm.sweep.policy import Policy
from newllm.sweep.record import choosing, launches
from newllm.sweep.runs import signature_of
from newllm.sweep.state import Line, survey

if TYPE_CHECKING:
    from newllm.sweep.local import Local
    from newllm.sweep.slurm import Slurm

Which = Literal["failed", "interrupted", "all"]
Say = Callable[[str], None]

_AT_ONCE = 500  # job ids on one command line of scancel


def cancel(sweep: Path, lines: Sequence[Line], everyone: Sequence[Line], say: Say) -> bool:
    """Stop the runs `lines` among `everyone` in the sweep and `say` what was done; False if some are out of reach.

    Runs at work are asked to save and end, queued ones become interrupted. A launcher is stopped if all of its sweep
    is to be, a SLURM job if all its unfinished runs are.
    """
    asked, complete = _stop_launchers(sweep, say) if len(lines) == len(everyone) else (set(), True)
    asked_slurm, cancelled = _cancel_jobs(lines, everyone, say)
    asked, complete = asked | asked_slurm, complete and cancelled
    others = Counter((line.host, line.pid) for line in everyone if line.state == "running")
    withdrawn = 0
    for line in lines:
        directory = RunDirectory(line.path)
        if line.state == "queued" and _withdraw(directory):
            withdrawn += 1
        elif line.state == "queued" or (line.state == "running" and line.name not in asked):
            complete = _stop_process(directory, shared=others[line.host, line.pid] > 1, say=say) and complete
    if withdrawn:
        say(f"{_runs(withdrawn)} will not be started.")
    if not asked and not any(line.state in ("queued", "running") for line in lines):
        say(f"Nothing to cancel in {sweep}: no run is queued or running.")
    return complete


def retry(sweep: Path, runs: Sequence[Path], which: Which, say: Say) -> int:
    """Queue those of the sweep's `runs` that ended so, and start them as it was last started; returns the exit status.

    They go on from their last checkpoints. which: "failed"; "interrupted", those that were cut off or cancelled and
    those that are queued while no launcher lives; "all", both.
    Raises ConfigError, before anything is queued, if a launcher is at work here or a run is of another version.
    """
    with choosing(sweep):
        wanted = [RunDirectory(line.path) for line in survey(sweep, runs) if _is(line, which)]
        if not wanted:
            say(f"Nothing to retry in {sweep}: no run is {'failed or interrupted' if which == 'all' else which}.")
            return 0
        records = launches(sweep)
        busy = next((record for record in records if record["alive"] and record.get("backend") == "local"), None)
        if busy:
            raise ConfigError(
                f"process {busy['pid']} on {busy['host']} is at work on {sweep}; wait for it, or stop it with "
                f"newllm status {sweep} --cancel."
            )
        launcher, policy = _launched(records[-1] if records else {"backend": "local", "launcher": {}, "policy": {}})
        configs = [_config(directory) for directory in wanted]
        for directory, config in zip(wanted, configs, strict=True):
            directory.freeze(config)
    say(f"{_runs(len(wanted))} of {sweep} {'goes' if len(wanted) == 1 else 'go'} on.")
    return launcher.start(sweep, [directory.path for directory in wanted], policy)


def _cancel_jobs(lines: Sequence[Line], everyone: Sequence[Line], say: Say) -> tuple[set[str], bool]:
    """scancel the jobs whose unfinished runs are all in `lines`; returns their runs, and whether SLURM did it."""
    chosen = {line.name for line in lines}
    shared = {line.slurm for line in everyone if line.attended and line.name not in chosen}
    theirs = [line for line in lines if line.slurm and line.attended and line.slurm not in shared]
    jobs = list(dict.fromkeys(str(line.slurm) for line in theirs))
    complaints: list[str] = []
    for begin in range(0, len(jobs), _AT_ONCE):
        try:
            done = subprocess.run(["scancel", *jobs[begin : begin + _AT_ONCE]], capture_output=True, text=True)
        except OSError as error:
            complaints = [f"it can't be run here ({error.strerror}); type the same command where SLURM is"]
            break
        complaints += [done.stderr] if done.returncode else []
    if complaints:
        say(f"scancel: {' '.join(' '.join(complaints).split())}")
    elif jobs:
        listed = ", ".join(jobs[:8]) + (f" and {len(jobs) - 8} more" if len(jobs) > 8 else "")
        say(f"Cancelled SLURM's {'job' if len(jobs) == 1 else 'jobs'} {listed}; runs at work save and end.")
    return {line.name for line in theirs}, not complaints


def _stop_launchers(sweep: Path, say: Say) -> tuple[set[str], bool]:
    """Ask the sweep's local launchers, as Ctrl-C does; returns the runs that are theirs, and whether all were asked."""
    asked: set[str] = set()
    complete = True
    for launch in launches(sweep):
        if not launch["alive"] or launch.get("backend") != "local":
            continue
        if launch["host"] != platform.node():
            say(f"The launcher is process {launch['pid']} on {launch['host']}; type the same command there.")
            complete = False
        else:
            say(f"Asking the launcher, process {launch['pid']}, to stop; the runs that it has at work save and end.")
            complete = _signal(launch["pid"], signal.SIGINT, say) and complete
        asked |= set(launch.get("runs", []))
    return asked, complete


def _withdraw(directory: RunDirectory) -> bool:
    """Let a queued run not be started; False if it has begun meanwhile."""
    try:
        with directory.locked():
            if directory.status().get("state", "queued") != "queued":
                return False
            directory.update_status(durable=False, state="interrupted", error="Cancelled before it began.")
            return True
    except ConfigError:  # a process holds it
        return False


def _stop_process(directory: RunDirectory, shared: bool, say: Say) -> bool:
    """Ask a run to save and end, through its process unless that is `shared`; False if it is on another machine."""
    if not directory.in_use():
        return True
    if shared:
        say(f"Asking {directory.path.name}, one of a pack, to save and end; the others go on.")
        ask_to_end(directory)
        return True
    status = directory.status()
    name, pid, host = directory.path.name, status.get("pid"), status.get("host")
    if not pid or host != platform.node():
        say(f"{name} is in the hands of process {pid} on {host}; cancel it there.")
        return False
    say(f"Asking {name}, process {pid}, to save and end.")
    return _signal(pid, signal.SIGTERM, say)


def _is(line: Line, which: Which) -> bool:
    cut_off = line.state in ("interrupted", "queued") and not line.attended
    return (line.state == "failed" and which != "interrupted") or (cut_off and which != "failed")


def _config(directory: RunDirectory) -> dict[str, Any]:
    """The frozen configuration, if this version of newllm gives it the signature under which it was planned."""
    from newllm.config import signature

    config = directory.config()
    mark = signature_of(directory.path.name)
    if not config or (mark and signature(config) != mark):
        raise ConfigError(
            f"{directory.path} can't go on, since its configuration is of another version of newllm or its data have "
            "changed; type the training command again."
        )
    return config


def _launched(record: Mapping[str, Any]) -> tuple["Local | Slurm", Policy]:
    """Launcher and policy of a record."""
    from newllm.sweep.local import Local
    from newllm.sweep.slurm import Slurm

    try:
        kind = {"local": Local, "slurm": Slurm}[record["backend"]]
        return kind(**record["launcher"]), Policy(**record["policy"])
    except (KeyError, TypeError):
        raise ConfigError(
            f"{record.get('file')} is of another version of newllm; type the training command again."
        ) from None


def _signal(pid: Any, signum: signal.Signals, say: Say) -> bool:
    """Send a signal; False, and a word, if that is not allowed. A process that is no more needs none."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass
    except PermissionError:
        say(f"Process {pid} belongs to another user, who has to stop it.")
        return False
    return True


def _runs(number: int) -> str:
    return f"{number:,} run{'s' * (number != 1)}"
