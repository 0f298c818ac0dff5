"""Several processes on one machine that train one run: `trainer.devices`.

Rank 0 is the run's own process, and the only one that writes, logs, validates and heeds signals. It starts the others
(newllm.training.rank_process) and tells each, by a line on its stdin, the rows and the rate of every step; without a
line they wait, asleep, for as long as it takes, and they end when that pipe closes, however rank 0 ended. Gradients go
through torch's process group: nccl between GPUs, gloo between processes on the CPU.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.distributed as dist

from newllm.errors import ConfigError, NewllmError, RunError
from newllm.training.signals import STOPPING

GRACE = 5.0  # seconds for what should take none, before it is ended by force


def device_of(device: torch.device, rank: int, ranks: int) -> torch.device:
    """The device of a rank, `device` being what runtime.device comes to; ConfigError where there are too few."""
    if ranks == 1 or device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ConfigError(
            f"trainer.devices={ranks} needs CUDA or the CPU, and this run is on {device.type}; try trainer.devices=1 "
            "or runtime.device=cpu"
        )
    if device.index is not None:
        raise ConfigError(
            f"trainer.devices={ranks} takes the first {ranks} visible GPUs and runtime.device={device} names one; type "
            "runtime.device=cuda, and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    if torch.cuda.device_count() < ranks:
        raise ConfigError(
            f"trainer.devices={ranks} takes a GPU each and {torch.cuda.device_count()} can be seen here; try "
            f"trainer.devices={torch.cuda.device_count()}, or runtime.device=cpu for processes on the CPU"
        )
    return torch.device("cuda", rank)


def enter_group(store: dist.Store, rank: int, ranks: int, device: torch.device) -> None:
    """Take this process's place in torch's process group."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback:  # all ranks are here, so it must not matter how this machine's name resolves
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    gpu = device if device.type == "cuda" else None
    dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=ranks, device_id=gpu)


@contextmanager
def team(
    ranks: int, directory: Path, device: torch.device, threads: int, fail: Callable[[str], None]
) -> Iterator["Team | None"]:
    """The other ranks of the run in `directory`, whose configuration is written; None where there is but one.

    They have ended when the block has. If one of them ends before, the block fails with a RunError that says so;
    where it cannot, waiting in some kernel for the lost rank, `fail` is called with that sentence and the process ends.
    """
    if ranks == 1:
        yield None
        return
    others = Team(ranks, device, fail)
    try:
        others.start(directory, threads)
        yield others
    except NewllmError:
        raise
    except Exception as error:  # what torch or a pipe makes of a lost rank says little
        if others.lost.wait(GRACE):
            raise RunError(others.reason) from error
        raise
    finally:
        others.end()


class Team:
    """Rank 0's view of the others."""

    def __init__(self, ranks: int, device: torch.device, fail: Callable[[str], None]) -> None:
        self.ranks, self.device = ranks, device
        self.lost, self.reason = threading.Event(), ""  # a rank that has ended too early, and why
        self._fail = fail
        self._ready = threading.Semaphore(0)
        self._ending, self._joined, self._ended = False, False, threading.Event()
        self._processes: list[subprocess.Popen[str]] = []
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def start(self, directory: Path, threads: int) -> None:
        """Start the others; they prepare the run while this process does."""
        # Where this process found its modules, `.` and folders of the user's included, they find theirs.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        share = {"OMP_NUM_THREADS": str(max(1, threads // self.ranks))}
        for rank in range(1, self.ranks):
            order = {"rank": rank, "ranks": self.ranks, "port": self._store.port, "threads": threads}
            with _signals_held():  # the child inherits this, and will ignore them before it lets them in
                process = subprocess.Popen(
                    [sys.executable, "-P", "-W", "ignore", "-m", "newllm.training.rank_process", str(directory)],
                    env={**os.environ, **share, "PYTHONPATH": path},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                self._processes.append(process)
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()
            self._say(process, order)

    def join(self) -> None:
        """Wait until all are prepared, and form torch's process group with them."""
        for _ in self._processes:
            while not self._ready.acquire(timeout=0.1):
                self.check()
        self._joined = True
        enter_group(self._store, 0, self.ranks, self.device)

    def train_on(self, indices: np.ndarray, rate: float) -> None:
        """Have the others make the step that this process makes next, on these rows of the training data."""
        self.check()
        for process in self._processes:
            self._say(process, {"rows": indices.tolist(), "rate": rate})

    def check(self) -> None:
        """Raise RunError if a rank has ended."""
        if self.lost.is_set():
            raise RunError(self.reason)

    def end(self) -> None:
        """End the others: of themselves where all are well, else by force. They hold nothing that could be lost."""
        self._ending = True
        try:
            for process in self._processes:
                with suppress(OSError):
                    _stdin(process).close()
                if not self._joined or self.lost.is_set():
                    process.kill()
            if self._joined and dist.is_initialized():
                dist.destroy_process_group()
            for process in self._processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
        finally:
            for process in self._processes:
                process.kill()
                process.wait()
            self._ended.set()

    def _say(self, process: "subprocess.Popen[str]", order: Mapping[str, object]) -> None:
        _stdin(process).write(json.dumps(order) + "\n")
        _stdin(process).flush()

    def _watch(self, rank: int, process: "subprocess.Popen[str]") -> None:
        """In a thread: note what a rank answers, and its end."""
        error = ""
        assert process.stdout is not None
        for line in process.stdout:
            answer = json.loads(line)
            error = answer.get("error", error)
            if answer.get("ready"):
                self._ready.release()
        status = process.wait()
        if self._ending:
            return
        self.reason = self.reason or _epitaph(f"Process {rank + 1} of this run's {self.ranks}", error, status)
        self.lost.set()
        if not self._ended.wait(GRACE):
            self._fail(self.reason)
            os._exit(1)


def _epitaph(who: str, error: str, status: int) -> str:
    again = "the same command goes on from the last checkpoint"
    if error:
        return f"{who} failed: {error}"
    if status < 0:
        memory = ", as the system does when memory runs out" if status == -signal.SIGKILL else ""
        return f"{who} was killed by {signal.Signals(-status).name}{memory}; {again}"
    return f"{who} ended by itself with exit status {status}; {again}"


def _stdin(process: "subprocess.Popen[str]") -> IO[str]:
    assert process.stdin is not None
    return process.stdin


@contextmanager
def _signals_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
