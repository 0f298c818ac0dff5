"""Training one run in several processes: ranks started by torchrun or srun, or `trainer.devices` local ones.

Only rank 0 writes, logs, validates and handles signals. The other ranks (newllm.run.follower) prepare the same run and
wait for the rows and the learning rate of each step. Gradients go through torch's process group: nccl between GPUs,
gloo between processes on CPUs. If no launcher has started the other ranks, rank 0 starts them with the variables that
torchrun would set.
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

from newllm.errors import ConfigError, NewllmError, RunError
from newllm.runtime import Place
from newllm.training.run_context import Run
from newllm.training.signals import STOPPING

GRACE = 5.0  # seconds to wait for a clean end before killing
FOREVER = timedelta(days=365)  # validation and stages before training have no time limit
_AGAIN = "the same command goes on from the last checkpoint"
Order = tuple[np.ndarray, float] | None  # rows and rate of the next step; None: training has ended


def device_of(device: torch.device, place: Place) -> torch.device:
    """The device of a rank, given the resolved runtime.device. Raises ConfigError if there are too few GPUs."""
    if place.size == 1 or device.type == "cpu":
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


@cache
def launched_store() -> dist.Store:
    """The store at MASTER_ADDR:MASTER_PORT, which every launched rank opens at its start."""
    store, _, _ = next(dist.rendezvous("env://"))
    return store


@contextmanager
def leading(place: Place) -> Iterator[None]:
    """Wraps rank 0's work: at its end, launched ranks that still wait for training are released."""
    if not place.launched:
        yield
        return
    store = launched_store()
    try:
        yield
    finally:
        store.set("train", "no")


class Group:
    """torch's process group of a run, and a second one for the orders of rank 0.

    rows: the largest number of rows in a step.
    """

    def __init__(self, store: dist.Store, place: Place, device: torch.device, rows: int) -> None:
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
        if loopback and place.local_size == place.size:  # do not depend on how this machine's name resolves
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        gpu = device if device.type == "cuda" else None
        backend = "nccl" if gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, device_id=gpu)
        self._orders = dist.new_group(backend="gloo", timeout=FOREVER)
        self._order = torch.zeros(2 + rows, dtype=torch.float64)  # number of rows (-1: training has ended), rate, rows
        self._sent: dist.Work | None = None

    def give(self, order: Order) -> None:
        """Send an order to the other ranks without waiting for its arrival. Only rank 0 calls this."""
        if self._sent is not None:
            self._sent.wait()
        self._order[0] = -1
        if order is not None:
            rows, rate = order
            self._order[0], self._order[1] = len(rows), rate
            self._order[2 : 2 + len(rows)] = torch.from_numpy(rows)
        self._sent = dist.broadcast(self._order, src=0, group=self._orders, async_op=True)
        if order is None:
            self._sent.wait()

    def take(self) -> Order:
        """Wait for the next order of rank 0."""
        dist.broadcast(self._order, src=0, group=self._orders)
        count = int(self._order[0])
        return None if count < 0 else (self._order[2 : 2 + count].long().numpy(), float(self._order[1]))


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
        self.run, self.place = run, run.place
        self.lost, self.reason = threading.Event(), ""  # set if a rank started by this process ends too early
        self._group: Group | None = None
        self._ending, self._ended = False, threading.Event()
        self._processes: list[subprocess.Popen[bytes]] = []
        if self.place.launched:
            self._store = launched_store()
        else:
            self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._store.set("train", "yes")

    def start(self) -> None:
        """Start the other ranks, which read the run's configuration from its directory."""
        ranks = self.place.size
        variables = {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),  # type: ignore[attr-defined]
            "OMP_NUM_THREADS": str(max(1, self.run.runtime.threads // ranks)),
            # They import modules from the same places as this process, including `.` and the user's folders.
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        command = [sys.executable, "-P", "-W", "ignore", "-m", "newllm.run.follower", str(self.run.directory.path)]
        for rank in range(1, ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with _signals_held():  # the child inherits the mask and unblocks the signals once it ignores them
                process = subprocess.Popen(
                    command, env={**os.environ, **variables, **own}, stdin=subprocess.PIPE, stdout=2
                )
            self._processes.append(process)
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    def join(self) -> None:
        """Wait until all ranks are ready, then form the process group."""
        others = range(1, self.place.size)
        while not self._store.check([f"ready/{rank}" for rank in others]):
            self.check()
            if failed := [reason for rank in others if (reason := self._failure(self._store, rank))]:
                raise RunError(failed[0])
            time.sleep(0.05)
        self._group = Group(self._store, self.place, self.run.device, self.run.trainer.batch_size)

    def train_on(self, indices: np.ndarray, rate: float) -> None:
        """Send the next step, which this process makes too, to the other ranks: rows of the training data, rate."""
        self.check()
        assert self._group is not None
        self._group.give((indices, rate))

    def check(self) -> None:
        """Raise RunError if a rank has ended."""
        if self.lost.is_set():
            raise RunError(self.reason)

    def end(self) -> None:
        """End the other ranks: by an order if all are alive, else by SIGKILL. They hold no state worth saving."""
        self._ending = True
        last_order = threading.Thread(target=self._order_the_end, daemon=True)
        last_order.start()
        last_order.join(GRACE)
        try:
            for process in self._processes:
                if self._group is None or self.lost.is_set() or last_order.is_alive():
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

    def _order_the_end(self) -> None:
        if self._group is not None and not self.lost.is_set():
            with suppress(RuntimeError):  # a rank has just ended
                self._group.give(None)

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        """Wait for a rank to end (runs in a thread)."""
        status = process.wait()
        if self._ending:
            return
        self.reason = self.reason or self._reason(rank, status)
        self.lost.set()
        if not self._ended.wait(GRACE):
            self.run.directory.end_attempt("failed", error=self.reason)
            print(f"newllm: {self.reason}", file=sys.stderr, flush=True)
            os._exit(1)

    def _reason(self, rank: int, status: int) -> str:
        """Why a rank has ended, as a sentence for the user."""
        name = self._name(rank)
        if status < 0:
            memory = ", as the system does when memory runs out" if status == -signal.SIGKILL else ""
            return f"{name} was killed by {signal.Signals(-status).name}{memory}; {_AGAIN}"
        # Needs its own connection, since the main thread may be blocked in the other one.
        store = dist.TCPStore("127.0.0.1", self._store.port, is_master=False)  # type: ignore[attr-defined]
        return self._failure(store, rank) or f"{name} ended by itself with exit status {status}; {_AGAIN}"

    def _failure(self, store: dist.Store, rank: int) -> str:
        """The error that a rank has reported, or an empty string."""
        error = store.get(f"error/{rank}").decode() if store.check([f"error/{rank}"]) else ""
        return f"{self._name(rank)} failed: {error}" if error else ""

    def _name(self, rank: int) -> str:
        return f"Process {rank + 1} of this run's {self.place.size}"


@contextmanager
def _signals_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
