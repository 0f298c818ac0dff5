"""The local launcher: runs in parallel on this machine's GPUs or CPU cores, one process each."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing import Pipe
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from newllm.errors import STOPPING, NewllmError, RunError, signal_name
from newllm.runtime import available_cores
from newllm.store.run_directory import RunDirectory
from newllm.streams import go_on_without_output
from newllm.sweep.check import parts
from newllm.sweep.launches import Policy
from newllm.sweep.slots import Slots
from newllm.sweep.snapshot import python_path
from newllm.sweep.state import write_state
from newllm.trust import VARIABLE, named

DEATHS = 3  # the launcher gives up when its process dies this often without finishing a run

# torch takes two seconds to import, during which the sweep is planned. Then the process learns which copy of the code
# to run.
_BOOT = """
import os, signal, sys, traceback
from multiprocessing.connection import Connection
import torch
signal.signal(signal.SIGINT, signal.SIG_DFL)
pipe = Connection(int(sys.argv[1]))
try:
    os.environ.update(pipe.recv())
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    from newllm.sweep.pool import serve
    serve(pipe)
except (EOFError, SystemExit):
    pass
except BaseException as error:
    traceback.print_exc()
    pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
sys.stdout.flush()
os._exit(0)
"""


class Local:
    """Slots on this machine: a slot is a GPU, a share of one, or a group of CPU cores.

    conf/hydra/launcher/local.yaml explains the options. Uses only the GPUs in CUDA_VISIBLE_DEVICES if it is set. A run
    with runtime.threads=N or trainer.devices=N takes that much. A resumed run keeps its thread count, since another one
    could change the last bits of its numbers.
    """

    def __init__(
        self,
        slots: int | Literal["auto"] = "auto",
        threads: int | Literal["auto"] = "auto",
        jobs_per_gpu: int = 1,
    ) -> None:
        self.options: dict[str, Any] = {"slots": slots, "threads": threads, "jobs_per_gpu": jobs_per_gpu}
        Slots(available_cores(), (), 1, **self.options)  # raises for values below 1
        self._process: _Process | None = None

    def check(self, sweep: Path, configs: Iterable[Mapping[str, Any]]) -> dict[int, str]:
        """Place of each of these effective configurations that cannot be built -> why.

        The process that will execute the runs of `sweep` does this, since it imports torch anyway.
        """
        self._process = _process_for(sweep)
        with suppress(EOFError):  # it has died, which `start` handles
            return dict(self._process.request("check", parts(configs)))
        return {}

    def start(self, sweep: Path, runs: Sequence[Path], policy: Policy) -> int:
        """Execute the frozen `runs` of the folder `sweep` and wait for them; returns the exit status.

        0: all done. 1: some run failed, was cancelled, or is run by another process. 128 + n: stopped by signal n; runs
        that have not started stay queued. If the process that executes the runs is killed, another one continues;
        raises RunError if that keeps failing.
        """
        go_on_without_output()
        left, deaths, status = list(runs), 0, 0
        while left:
            process, self._process = self._process or _process_for(sweep), None
            with _forward_signals(process) as received:
                try:
                    status = process.request("launch", sweep, left, policy, self.options)
                    break
                except EOFError:
                    pass
                finally:
                    end = process.close()
            if received:  # before the process had handlers for them
                return 128 + received[0]
            before, left = len(left), _queue_again(left)
            deaths = 1 if len(left) < before else deaths + 1
            if deaths == DEATHS:
                raise RunError(f"The process that executes the runs {end}, {DEATHS} times in a row.")
            print(f"The process that executes the runs {end}; they continue in a new one.", flush=True)
        return status or int(not all(RunDirectory(run).is_done() for run in runs))


class _Process:
    """A Python process that imports torch and then executes runs with a copy of the code; see newllm.sweep.pool."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self.python = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads do not survive a fork
                start_new_session=True,  # Ctrl-C reaches it through this process only
            )

    def send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died, which `request` detects
            self._pipe.send(message)

    def request(self, name: str, *arguments: Any) -> Any:
        """The answer of the process. Raises the NewllmError that it sends, or EOFError if it is dead."""
        self.send((name, arguments))
        try:
            while not self._pipe.poll(0.5):  # its workers may keep the pipe open when it dies
                if self.python.poll() is not None and not self._pipe.poll():
                    raise EOFError
            answer = self._pipe.recv()
        except ConnectionResetError:
            raise EOFError from None
        if isinstance(answer, NewllmError):
            raise answer
        if isinstance(answer, Exception):
            raise RunError(f"The process that executes the runs can't start: {answer}.")
        return answer

    def close(self) -> str:
        """Let the process end; returns how it ended."""
        self._pipe.close()
        status = self.python.wait()
        return f"was killed by {signal_name(-status)}" if status < 0 else f"ended with status {status}"


_warm: list[_Process] = []


def warm_up() -> None:
    """Start a process for the launch that is about to be planned."""
    _warm.append(_Process())


def discard_warm() -> None:
    """Kill the process that `warm_up` has started if no launch has taken it."""
    while _warm:
        _warm.pop().python.kill()


def _process_for(sweep: Path) -> _Process:
    process = _warm.pop() if _warm else _Process()
    process.send({"PYTHONPATH": python_path(sweep), VARIABLE: ",".join(named())})
    return process


@contextmanager
def _forward_signals(process: _Process) -> Iterator[list[int]]:
    """Forward the stopping signals to the process within this block; yields the list of signals so far.

    Ignored signals stay ignored, as SIGHUP under nohup.
    """
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        process.python.send_signal(signum)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    handled = [signum for signum in STOPPING if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, forward) for signum in handled}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _queue_again(runs: Sequence[Path]) -> list[Path]:
    """Wait for the workers of a killed process to save and stop; returns the runs that are still to do."""
    died = datetime.now(UTC) - timedelta(seconds=2)  # at the earliest
    time.sleep(1.0)  # by then, newly forked workers have ended or locked their runs
    left = []
    for directory in map(RunDirectory, runs):
        while directory.in_use():
            time.sleep(0.1)
        if directory.observed() == "interrupted":
            status = directory.status()
            ended = status.get("finished")
            if not status.get("error") and (ended is None or datetime.fromisoformat(ended) >= died):
                write_state(directory, "queued")  # other interrupted runs were cancelled
        left += [directory.path] if directory.waits() else []
    return left
