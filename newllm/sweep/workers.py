"""Worker processes, forked from a process that has imported everything, so that a run starts in milliseconds.

The parent keeps to one thread and away from CUDA, since neither survives a fork.
"""

import faulthandler
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from newllm.errors import ConfigError, NewllmError, RunError
from newllm.sweep.worker import sentence, work

PATIENCE = 30.0  # seconds from the request to save and end to SIGKILL, once the parent is gone
STDERR = "stderr.log"  # in the run directory: what no other file holds, such as a crash of the interpreter

_FORK = multiprocessing.get_context("fork")
_LOOK_SECONDS = 0.3  # between two looks whether the parent still lives


class Workers:
    """A process for each run, or for each pack of runs.

    Workers that outlive this process save and end. If the parent of this process goes, this process gets a SIGTERM,
    and its workers are killed PATIENCE seconds later.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._kill_at: float | None = None
        self._running: dict[int, tuple[multiprocessing.process.BaseProcess, list[Path]]] = {}

    def start(self, number: int, runs: Sequence[Path], environment: Mapping[str, str]) -> None:
        """Begin a run, or several that train together. Raises RunError if the system gives no process."""
        paths = [run.resolve() for run in runs]
        process = _FORK.Process(target=_work, args=(paths, environment, os.getpid()))
        try:
            process.start()
        except OSError as error:
            raise RunError(f"No process can be started for {runs[0]} ({error.strerror}).") from None
        self._running[number] = process, paths

    def signal(self, number: int, signum: int) -> None:
        """SIGKILL goes to everything that the worker has started, any other signal to the worker alone."""
        pid = self._running[number][0].pid
        assert pid is not None
        with suppress(ProcessLookupError, PermissionError):
            (os.killpg if signum == signal.SIGKILL else os.kill)(pid, signum)

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """(number, exit status) of workers that have ended, as soon as there is one or the time is up.

        The status of a worker that was killed is minus the signal.
        """
        wait([process.sentinel for process, _ in self._running.values()], seconds)
        if self._kill_at is None and os.getppid() != self._parent:
            self._kill_at = time.monotonic() + PATIENCE
            os.kill(os.getpid(), signal.SIGTERM)
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            for number in self._running:
                self.signal(number, signal.SIGKILL)
        statuses = {number: process.exitcode for number, (process, _) in self._running.items()}
        ended = [(number, status) for number, status in statuses.items() if status is not None]
        for number, _ in ended:
            process, runs = self._running.pop(number)
            assert process.pid is not None
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # processes that it started and left behind
            _share_stderr(runs)
        return ended


def in_child(act: Callable[..., Any], *arguments: Any) -> Any:
    """What act(*arguments) returns, computed in a forked process, so that this one stays as it is.

    Its NewllmError is raised here; any other exception of it becomes a ConfigError of one sentence.
    """
    parent = os.getpid()
    ours, theirs = _FORK.Pipe(duplex=False)

    def answer() -> None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            found = act(*arguments)
        except NewllmError as error:
            found = error
        except BaseException as error:
            found = ConfigError(sentence(error))
        theirs.send(found)

    process = _FORK.Process(target=answer)
    process.start()
    theirs.close()
    with suppress(EOFError):
        found = ours.recv()
        process.join()
        if isinstance(found, NewllmError):
            raise found
        return found
    process.join()
    raise RunError(f"A process that was to try the runs has ended with status {process.exitcode}.")


def _work(runs: Sequence[Path], environment: Mapping[str, str], parent: int) -> None:
    """In the worker: away from everything that is the parent's, then the runs."""
    os.setsid()
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # train.log has what is printed
    os.dup2(os.open(runs[0] / STDERR, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)
    faulthandler.enable(file=2)
    os.environ.update(environment)
    sys.orig_argv[1:] = ["-P", "-m", "newllm.sweep.worker", *map(str, runs)]  # for environment.json
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.exit(work(*runs))


def _end_with(parent: int) -> None:
    """In a thread of a child: the parent's death is a request to save and end, and then an order."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os.killpg(0, signal.SIGKILL)


def _share_stderr(runs: Sequence[Path]) -> None:
    """Each run of a pack gets a copy; an empty file goes."""
    first = runs[0] / STDERR
    with suppress(OSError):
        if not first.stat().st_size:
            first.unlink()
        else:
            for run in runs[1:]:
                shutil.copy(first, run / STDERR)
