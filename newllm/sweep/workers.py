"""Worker processes: each executes one frozen run, or several as a pack, from their directories.

They are forked from a process that has imported everything, so that a run starts in milliseconds. That process keeps to
one thread and away from CUDA, since neither survives a fork.

`python -P -m newllm.sweep.workers RUN_DIRECTORY` executes a run by hand; several directories make a pack.
"""

import faulthandler
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newllm.errors import LESS_MEMORY, STOPPING, ConfigError, NewllmError, RunError, ran_out_of_memory
from newllm.store.run_directory import RunDirectory
from newllm.sweep.state import write_state

if TYPE_CHECKING:
    from omegaconf import DictConfig

PATIENCE = 30.0  # seconds that a child has to save and stop once its parent is gone; then it is killed
STDERR = "stderr.log"  # in the run directory: output that no other file has, such as a crash of the interpreter

_FORK = multiprocessing.get_context("fork")
_LOOK_SECONDS = 0.3  # between two checks of whether the parent is alive
_END = ".end"  # file in a run directory: this run of a pack is to save and stop


class Workers:
    """The running workers, by process id. If the parent of this process dies, they save and stop, and so does it."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._running: dict[int, tuple[multiprocessing.process.BaseProcess, list[Path]]] = {}

    def start(self, runs: Sequence[Path], environment: Mapping[str, str]) -> int:
        """Fork a worker for a run, or for several that train together; returns its process id.

        Raises RunError if the system starts no process.
        """
        paths = [run.resolve() for run in runs]
        process = _FORK.Process(target=_enter_worker, args=(paths, environment, os.getpid()))
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # a signal waits until the child has its own handlers
        try:
            process.start()
        except OSError as error:
            raise RunError(f"No process can be started for {runs[0]} ({error.strerror}).") from None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        assert process.pid is not None
        self._running[process.pid] = process, paths
        return process.pid

    def signal(self, pid: int, signum: int) -> None:
        """SIGKILL goes to everything that the worker has started, any other signal to the worker alone."""
        with suppress(ProcessLookupError, PermissionError):
            (os.killpg if signum == signal.SIGKILL else os.kill)(pid, signum)

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """(process id, exit status) of workers that have ended, as soon as there is one or the time is up.

        The status of a worker that was killed is minus the signal.
        """
        wait([process.sentinel for process, _ in self._running.values()], seconds)
        if os.getppid() != self._parent:
            for pid in self._running:
                self.signal(pid, signal.SIGTERM)
            sys.exit(1)
        statuses = {pid: process.exitcode for pid, (process, _) in self._running.items()}
        ended = [(pid, status) for pid, status in statuses.items() if status is not None]
        for pid, _ in ended:
            self.signal(pid, signal.SIGKILL)  # processes that the worker has left behind
            first, *others = (run / STDERR for run in self._running.pop(pid)[1])
            with suppress(OSError):
                if first.stat().st_size == 0:
                    first.unlink()
                else:
                    for other in others:
                        shutil.copy(first, other)
        return ended


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What function(*arguments) returns, computed in a forked process, so that this one stays as it is.

    Its NewllmError is raised here; any other exception becomes a ConfigError of one sentence.
    """
    parent = os.getpid()
    receiver, sender = _FORK.Pipe(duplex=False)

    def compute() -> None:
        _leave_parent(parent)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            answer = function(*arguments)
        except NewllmError as error:
            answer = error
        except BaseException as error:
            answer = ConfigError(sentence(error))
        sender.send(answer)

    process = _FORK.Process(target=compute)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise RunError(f"The process that checks the runs ended with status {process.exitcode}.") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, NewllmError):
        raise answer
    return answer


def _leave_parent(parent: int) -> None:
    """In a child: restore the signal handlers, and save and stop if the parent dies."""

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os.killpg(0, signal.SIGKILL)

    os.setsid()
    for signum in STOPPING:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=end_with_parent, daemon=True).start()


def _enter_worker(runs: Sequence[Path], environment: Mapping[str, str], parent: int) -> None:
    _leave_parent(parent)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # train.log has what is printed
    os.dup2(os.open(runs[0] / STDERR, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)
    faulthandler.enable(file=2)
    os.environ.update(environment)
    sys.orig_argv[1:] = ["-P", "-m", "newllm.sweep.workers", *map(str, runs)]  # for environment.json
    sys.exit(work(*runs))


def work(*paths: str | os.PathLike[str]) -> int:
    """Execute the runs that are frozen in these directories, several as one batched model; returns the exit status.

    0: all are done, or were done before. 1: some have failed. Else the status of the first that is not done; 2:
    refused, as for a bad configuration; 128 + n: interrupted by signal n. The error of a failed run goes into its
    status.json, with the traceback if it was unexpected. A directory that another process holds stays as it is. If one
    run of several fails, or `ask_to_end` names it, the others go on.
    """
    directories = [RunDirectory(path) for path in paths]
    ends: Sequence[int | BaseException]
    try:
        directories = [directory for directory in directories if not directory.is_done() or directory.asked()]
        from newllm.run.prepare import frozen_config

        configs = [frozen_config(directory) for directory in directories]
        if len(directories) > 1:
            ends = _work_packed(directories, configs)
        else:
            from newllm.run.execute import run

            ends = [run(cfg) for cfg in configs]
    except (Exception, SystemExit) as error:
        ends = [error] * len(directories)
    statuses = []
    for directory, end in zip(directories, ends, strict=True):
        if isinstance(end, BaseException):
            expected = isinstance(end, NewllmError)
            trace = None if expected else "".join(traceback.format_exception(end))
            write_state(directory, "failed", str(end) if expected else sentence(end), trace)
            end = end.exit_status if isinstance(end, NewllmError) else 1
        statuses.append(end)
    return 1 if 1 in statuses else next(filter(None, statuses), 0)


def _work_packed(directories: Sequence[RunDirectory], configs: Sequence["DictConfig"]) -> Sequence[int | BaseException]:
    from newllm.pack.compatibility import require_compatible
    from newllm.pack.meeting import run_packed

    def cancelled(number: int) -> bool:
        with suppress(FileNotFoundError):
            (directories[number].path / _END).unlink()
            return True
        return False

    require_compatible([directory.config() for directory in directories], len(directories))
    for number in range(len(directories)):
        cancelled(number)  # discards requests that came too late for an earlier attempt
    return run_packed(configs, cancelled)


def ask_to_end(directory: RunDirectory) -> None:
    """Ask one run of a pack to save and stop; a signal would end them all."""
    (directory.path / _END).touch()


def sentence(error: BaseException) -> str:
    """An unexpected exception in one line: its class, the first line of its message, and advice if memory ran out."""
    first = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return f"{text}; {LESS_MEMORY}" if ran_out_of_memory(error) else text


if __name__ == "__main__":
    raise SystemExit(work(*sys.argv[1:]))
