"""Commands in forked processes: a process of their own, as a user's, but torch is imported already."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path


def forked(command: Callable[[], int], log: Path, **environment: str) -> ForkProcess:
    """Start `command`, which returns its exit status, in a process and a session of its own.

    log: the file that gets its output. environment: variables to set there.
    """
    process = multiprocessing.get_context("fork").Process(target=_child, args=(command, log, environment))
    process.start()
    return process


def ended(process: ForkProcess, seconds: float = 60) -> int | None:
    """Wait for the process; returns its exit status, None if it had to be killed."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        return None
    return process.exitcode


def _child(command: Callable[[], int], log: Path, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    os._exit(command())
