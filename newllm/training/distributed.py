"""Training one run in several processes: ranks started by torchrun or srun, or `trainer.devices` local ones.

Only rank 0 writes, logs, validates and handles signals. The other ranks (newllm.run.follower) prepare the same run and
make the steps that rank 0 orders through torch's store, the server at MASTER_ADDR:MASTER_PORT. Gradients go through
torch's process group: nccl between GPUs, gloo between processes on CPUs. If no launcher has started the other ranks,
rank 0 starts them with the variables that torchrun would set.

Keys of the store: train (yes or no), ready/RANK, error/RANK, ended/RANK, and the queues orders/RANK.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache

import numpy as np
import torch
import torch.distributed as dist

from newllm.errors import STOPPING, ConfigError, NewllmError, RunError
from newllm.runtime import Place
from newllm.training.run_context import Run

GRACE = 5.0  # seconds to wait for a clean end before killing
READY_SECONDS = 600.0  # for a rank to get ready, in addition to three times what rank 0 took
_AGAIN = "the same command goes on from the last checkpoint"


def device_of(device: torch.device, place: Place) -> torch.device:
    """The device of a rank, given the resolved runtime.device. Raises ConfigError if there are too few GPUs."""
    if place.size == 1 or device.type == "cpu":
        if place.size > (most := 4 * (os.cpu_count() or 1)) and not place.launched:
            raise ConfigError(
                f"trainer.devices={place.size} would start as many processes here; at most {most} make sense"
            )
        return device
    if device.type != "cuda":
        raise ConfigError(
            f"trainer.devices={place.size} needs CUDA or the CPU, and this run is on {device.type}; try "
            "trainer.devices=1 or runtime.device=cpu"
        )
    if device.index is not None:
        raise ConfigError(
            f"trainer.devices={place.size} takes the first {place.local_size} visible GPUs and "
            f"runtime.device={device} names one; type runtime.device=cuda, and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    visible = torch.cuda.device_count()
    if place.launched and visible == 1:  # the launcher gave each rank a GPU of its own
        return torch.device("cuda", 0)
    if visible < place.local_size:
        raise ConfigError(
            f"trainer.devices={place.size} needs {place.local_size} GPUs here, and {visible} are visible; try "
            f"trainer.devices={visible}, or runtime.device=cpu for processes on the CPU"
        )
    return torch.device("cuda", place.local_rank)


def open_store() -> dist.Store:
    """A new connection to the store at MASTER_ADDR:MASTER_PORT."""
    store, _, _ = next(dist.rendezvous("env://"))
    return store


launched_store = cache(open_store)  # the connection that every launched rank opens at its start


def end_launched(store: dist.Store, place: Place) -> None:
    """End launched ranks that still wait for training. Rank 0, whose process may be the server, lets them read that."""
    store.set("train", "no")
    with suppress(dist.DistError):  # a rank was killed
        store.wait([f"ended/{rank}" for rank in range(1, place.size)], timedelta(seconds=GRACE))


def form_group(store: dist.Store, place: Place, device: torch.device) -> None:
    """Form torch's process group. Every rank calls this."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback and place.local_size == place.size:  # do not depend on how this machine's name resolves
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    gpu = device if device.type == "cuda" else None
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, device_id=gpu)


def next_order(store: dist.Store, rank: int) -> tuple[np.ndarray, float] | None:
    """Wait for rank 0's next order to `rank`: rows and learning rate of a step. None: training has ended."""
    order = np.frombuffer(store.queue_pop(f"orders/{rank}"))
    return (order[1:].astype(np.int64), float(order[0])) if len(order) else None


@contextmanager
def team(run: Run) -> Iterator["Team | None"]:
    """The other ranks of a run whose configuration is in its directory; None if there are none.

    They end with the block. If one ends earlier, the block fails with a RunError that says so. If the block cannot
    fail because a kernel waits for the lost rank, status.json and stderr get that sentence and the process exits.
    """
    place = run.place
    if place.size == 1:
        yield None
        return
    others = Team(run)
    try:
        if not place.launched:
            others.start()
        yield others
    except NewllmError:
        raise
    except Exception as error:  # torch's errors do not name a lost rank
        if place.launched and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise RunError(
                f"A process of this run's {place.size} has ended, as the output of its launcher says; {_AGAIN}"
            ) from error
        if not place.launched and others.lost.wait(GRACE):
            raise RunError(others.reason) from error
        raise
    finally:
        others.end()


class Team:
    """Rank 0's view of the other ranks."""

    def __init__(self, run: Run) -> None:
        self.run, self.place, self.ranks = run, run.place, range(1, run.place.size)
        self.lost, self.reason = threading.Event(), ""  # set if a rank started by this process ends too early
        self._ending, self._ended = False, threading.Event()
        self._processes: list[subprocess.Popen[bytes]] = []
        if self.place.launched:
            self._store = launched_store()
        else:
            self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._store.set("train", "yes")

    def start(self) -> None:
        """Start the other ranks, which read the run's configuration from its directory."""
        variables = {
            "WORLD_SIZE": str(self.place.size),
            "LOCAL_WORLD_SIZE": str(self.place.size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),  # type: ignore[attr-defined]
            "OMP_NUM_THREADS": str(max(1, self.run.runtime.threads // self.place.size)),
            # They import modules from the same places as this process, including `.` and the user's folders.
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        command = [sys.executable, "-P", "-W", "ignore", "-m", "newllm.run.follower", str(self.run.directory.path)]
        for rank in self.ranks:
            environment = {**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            # The child inherits the blocked signals and unblocks them once it ignores them.
            unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            try:
                process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=2)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            self._processes.append(process)
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    def join(self) -> None:
        """Wait until all ranks are ready, then form the process group. Raises RunError if one fails or never is."""
        patience = READY_SECONDS + 3 * (time.monotonic() - self.run.started)
        deadline = time.monotonic() + patience
        while waiting := [rank for rank in self.ranks if not self._store.check([f"ready/{rank}"])]:
            self.check()
            if failed := [reason for rank in waiting if (reason := self._failure(self._store, rank))]:
                raise RunError(failed[0])
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self._name(waiting[0])} was not ready after {patience / 60:.0f} minutes; look for its end in "
                    f"the output of its launcher; {_AGAIN}"
                )
            time.sleep(0.05)
        form_group(self._store, self.place, self.run.device)

    def train_on(self, indices: np.ndarray, rate: float) -> None:
        """Order the next step, which this process makes too: rows of the training data, learning rate."""
        self.check()
        order = np.concatenate(([rate], indices)).astype(np.float64).tobytes()
        for rank in self.ranks:
            self._store.queue_push(f"orders/{rank}", order)

    def check(self) -> None:
        """Raise RunError if a rank has ended."""
        if self.lost.is_set():
            raise RunError(self.reason)

    def end(self) -> None:
        """End the other ranks: by an order if all are ready and alive, else by SIGKILL. They hold no state to save."""
        self._ending = True
        try:
            with suppress(dist.DistError):  # the launcher has ended its store
                self._store.set("train", "no")
                for rank in self.ranks:
                    self._store.queue_push(f"orders/{rank}", b"")
            if self.lost.is_set() or not dist.is_initialized():
                for process in self._processes:
                    process.kill()
            if dist.is_initialized():
                dist.destroy_process_group()
            for process in self._processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
        finally:
            for process in self._processes:
                process.kill()
                process.wait()
            self._ended.set()

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        """Wait for a rank to end (runs in a thread)."""
        status = process.wait()
        if self._ending:
            return
        name = self._name(rank)
        if status < 0:
            memory = ", as the system does when memory runs out" if status == -signal.SIGKILL else ""
            reason = f"{name} was killed by {signal.Signals(-status).name}{memory}; {_AGAIN}"
        else:  # needs a connection of its own, since the main thread may be blocked in the other one
            store = dist.TCPStore("127.0.0.1", self._store.port, is_master=False)  # type: ignore[attr-defined]
            reason = self._failure(store, rank) or f"{name} ended by itself with exit status {status}; {_AGAIN}"
        self.reason = self.reason or reason
        self.lost.set()
        if not self._ended.wait(GRACE):
            self.run.directory.end_attempt("failed", error=self.reason)
            print(f"newllm: {self.reason}", file=sys.stderr, flush=True)
            os._exit(1)

    def _failure(self, store: dist.Store, rank: int) -> str:
        """The error that a rank has reported, or an empty string."""
        error = store.get(f"error/{rank}").decode() if store.check([f"error/{rank}"]) else ""
        return f"{self._name(rank)} failed: {error}" if error else ""

    def _name(self, rank: int) -> str:
        return f"Process {rank + 1} of this run's {self.place.size}"
