"""A process that has imported everything once and forks a worker for each run. newllm.sweep.warm starts it.

It reads requests from stdin and answers on stdout, a JSON object a line:

    {"id": 3, "runs": [PATH], "env": {"CUDA_VISIBLE_DEVICES": "1"}}   fork a worker for this run directory; for several,
                                                                   which train together
    {"id": 3, "signal": 15}                                        send its process this signal; 9: all it started too
    {"id": 4, "check": [[PATH, NODE], …]}                          build these parts of configurations (sweep/check.py)
    {"id": 5, "measure": [PATH, …], "sizes": [1, 2], "env": {}}    time these runs' training steps (pack/measure.py)
    -> {"id": 3, "pid": 4711}                                      it has begun
    -> {"id": 3, "status": 0}                                      it has ended: its exit status, or minus the signal
    -> {"id": 4, "refused": null}                                  the sentence of the first that is refused, if any
    -> {"id": 5, "refused": null, "speeds": [20.0, 24.5]}          runs' steps per second in packs of these sizes

The end of stdin says that the launcher is gone: workers are asked to save and end, and killed after PATIENCE seconds.
Workers notice the same of this process by the end of a pipe. It keeps to one thread and away from CUDA, since
neither survives a fork.
"""

import faulthandler
import gc
import json
import os
import selectors
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from newllm.errors import NewllmError

PATIENCE = 30.0  # seconds from the request to end to SIGKILL
STDERR = "stderr.log"  # in the run directory: what no other file holds, such as a crash of the interpreter


class Nursery:
    """Reads requests from the descriptor `requests`, writes answers to `answers`."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = requests, answers
        self._unread = b""
        self._children: dict[int, tuple[int, list[Path]]] = {}  # pid -> (id, run directories)
        self._deadline: float | None = None  # set when the launcher has gone
        self._lifeline, self._held = os.pipe()  # workers read the first; only this process holds the second
        self._wake, wake = os.pipe()
        for end in (self._wake, wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._own = (requests, answers, self._held, self._wake, wake)

    def serve(self) -> None:
        """Until stdin and all workers have ended."""
        with selectors.DefaultSelector() as self._selector:
            self._selector.register(self._requests, selectors.EVENT_READ)
            self._selector.register(self._wake, selectors.EVENT_READ)
            while self._deadline is None or self._children:
                for key, _ in self._selector.select(None if self._deadline is None else 1.0):
                    if key.fd == self._wake:
                        os.read(self._wake, 4096)
                    else:
                        self._read()
                self._reap()
                if self._deadline is not None and time.monotonic() > self._deadline:
                    for pid in self._children:
                        send_signal(pid, signal.SIGKILL)

    def _read(self) -> None:
        got = os.read(self._requests, 1 << 16)
        if not got:
            self._selector.unregister(self._requests)
            self._deadline = time.monotonic() + PATIENCE
            for pid in self._children:
                send_signal(pid, signal.SIGTERM)
            return
        *lines, self._unread = (self._unread + got).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, request: dict[str, Any]) -> None:
        if "signal" in request:
            for pid, (number, _) in self._children.items():
                if number == request["id"]:
                    send_signal(pid, request["signal"])
            return
        sys.stderr.flush()
        if "check" in request:
            self._check(request)
            return
        if "measure" in request:
            self._measure(request)
            return
        runs = [Path(run) for run in request["runs"]]
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = self._work(runs, request["env"])
            except BaseException:
                traceback.print_exc()
            finally:
                with suppress(OSError, ValueError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)
        self._children[pid] = (request["id"], runs)
        self._answer({"id": request["id"], "pid": pid})

    def _check(self, request: dict[str, Any]) -> None:
        from newllm.sweep.check import build_all

        def check() -> dict[str, Any]:
            build_all(request["check"])
            return {}

        self._in_child(request["id"], check)

    def _measure(self, request: dict[str, Any]) -> None:
        def measure() -> dict[str, Any]:
            os.environ.update(request["env"])
            from newllm.pack.measure import measure

            return {"speeds": measure([Path(run) for run in request["measure"]], request["sizes"])}

        self._in_child(request["id"], measure)

    def _in_child(self, number: int, act: Callable[[], dict[str, Any]]) -> None:
        """Answer with what `act` finds, or the sentence that refuses it; workers must find this process as it was."""
        pid = os.fork()
        if pid == 0:
            from newllm.sweep.worker import sentence

            refused, found = None, {}
            try:
                found = act()
            except NewllmError as error:
                refused = str(error)
            except BaseException as error:
                refused = sentence(error)
            self._answer({"id": number, "refused": refused, **found})
            os._exit(0)
        os.waitpid(pid, 0)

    def _work(self, runs: list[Path], env: dict[str, str]) -> int:
        """In the worker: away from everything that is the nursery's, then the runs."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        self._selector.close()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)  # stdout goes nowhere already: train.log has it
        os.dup2(os.open(runs[0] / STDERR, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2)
        for descriptor in self._own:
            if descriptor > 2:
                os.close(descriptor)
        faulthandler.enable(file=2)
        os.environ.update(env)
        # What does the same, for environment.json.
        sys.orig_argv[1:] = ["-P", "-m", "newllm.sweep.worker", *map(str, runs)]
        threading.Thread(target=_end_with_nursery, args=(self._lifeline,), daemon=True).start()

        from newllm.sweep.worker import work_packed

        return work_packed(runs)

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            number, runs = self._children.pop(pid)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # processes that it started and left behind
            with suppress(OSError):
                if not (runs[0] / STDERR).stat().st_size:
                    (runs[0] / STDERR).unlink()
                else:
                    for run in runs[1:]:
                        shutil.copy(runs[0] / STDERR, run / STDERR)
            self._answer({"id": number, "status": os.waitstatus_to_exitcode(status)})

    def _answer(self, answer: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # the launcher is gone, which the end of stdin says too
            os.write(self._answers, json.dumps(answer).encode() + b"\n")


def send_signal(pid: int, signum: int) -> None:
    """SIGKILL goes to all that the worker has started, any other signal to the worker, which knows what to do."""
    with suppress(ProcessLookupError, PermissionError):
        if signum == signal.SIGKILL:
            os.killpg(pid, signum)
        else:
            os.kill(pid, signum)


def _end_with_nursery(lifeline: int) -> None:
    """In a thread of the worker: the nursery's death is a request to save and end, and then an order."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os.killpg(0, signal.SIGKILL)


def main() -> NoReturn:
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that prints can get between the answers
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # which reach the launcher or the job as a whole
        signal.signal(signum, signal.SIG_IGN)

    import newllm.run  # noqa: F401

    gc.collect()
    gc.freeze()  # workers share these pages as long as no collection touches them
    Nursery(0, answers).serve()
    os._exit(0)  # there is nothing to flush, and taking torch down takes a while
