"""The GPUs and CPU cores of a machine, shared out among runs."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from newllm.errors import ConfigError


@dataclass(frozen=True)
class Grant:
    """The resources given to one run.

    Args:
        threads: CPU threads of all its processes together.
        units: slots that it takes.
        gpus: its GPUs by their CUDA names; None: CUDA decides.
    """

    threads: int
    units: int = 0
    gpus: tuple[str, ...] | None = None

    def environment(self) -> dict[str, str]:
        """The environment variables that limit a worker to its grant."""
        visible = {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}
        return {"OMP_NUM_THREADS": str(self.threads), **visible}


class Slots:
    """The free resources of a machine. A run on GPUs takes shares of them, any other run takes units of CPU cores.

    Args:
        cores: CPU cores this process may use.
        gpus: CUDA names of the GPUs this process may use.
        runs: number of runs to do.
        slots: concurrent runs; "auto": one per share of a GPU or per `threads` cores.
        threads: CPU threads per run; "auto": the cores divided by the number of concurrent runs.
        jobs_per_gpu: runs that share a GPU.
    """

    def __init__(
        self,
        cores: int,
        gpus: tuple[str, ...],
        runs: int,
        slots: int | Literal["auto"] = "auto",
        threads: int | Literal["auto"] = "auto",
        jobs_per_gpu: int = 1,
    ) -> None:
        for name, value in (("slots", slots), ("threads", threads), ("jobs_per_gpu", jobs_per_gpu)):
            if value != "auto" and value < 1:
                raise ConfigError(f"hydra.launcher.{name} must be at least 1; {value} was given")
        shares = len(gpus) * jobs_per_gpu if gpus else cores // (1 if threads == "auto" else threads)
        self.count = max(1, min(shares, runs) if slots == "auto" else slots)
        self.threads = max(1, cores // min(self.count, max(runs, 1))) if threads == "auto" else threads
        self.gpus = gpus
        self._units = self.count
        self._shares = dict.fromkeys(gpus, jobs_per_gpu)

    @property
    def full(self) -> bool:
        """Whether nothing is free."""
        return self._units == 0

    def take(self, config: Mapping[str, Any], earlier_threads: int | None = None) -> Grant | None:
        """Resources for a run with this effective configuration; None while not enough is free.

        A run that needs more than the machine has gets all of it. earlier_threads: those that the run began with.
        Raises ConfigError if the run names a GPU, since the launcher assigns them.
        """
        runtime = {"device": "auto", "threads": "auto", **(config.get("runtime") or {})}
        device, threads = str(runtime["device"]), runtime["threads"]
        if self.gpus and device.startswith("cuda:") and device != "cuda:0":
            raise ConfigError(
                f"runtime.device={device} names one GPU, while a launcher gives each run its own; leave runtime.device "
                f"out and type CUDA_VISIBLE_DEVICES={device[5:]} before the command to use that one only"
            )
        processes = int((config.get("trainer") or {}).get("devices") or 1)
        on_gpus = bool(self.gpus) and (device == "auto" or device.startswith("cuda"))
        number = min(processes, len(self.gpus)) if on_gpus else 0
        threads = threads if isinstance(threads, int) else earlier_threads
        threads = threads or (self.threads * processes if on_gpus else max(self.threads, processes))
        units = min(number or -(-max(threads, processes) // self.threads), self.count)
        free = sorted((gpu for gpu in self.gpus if self._shares[gpu]), key=lambda gpu: -self._shares[gpu])
        if units > self._units or len(free) < number:
            return None
        self._units -= units
        for gpu in free[:number]:
            self._shares[gpu] -= 1
        return Grant(threads, units, tuple(free[:number]) if self.gpus else None)

    def give(self, grant: Grant) -> None:
        """Return the resources of a run that has ended."""
        self._units += grant.units
        for gpu in grant.gpus or ():
            self._shares[gpu] += 1


def visible_gpus() -> tuple[str, ...]:
    """CUDA names of the GPUs this process may use: the entries of CUDA_VISIBLE_DEVICES (numbers, UUIDs, MIG
    instances), else the numbers of the GPUs, or their MIG instances, from ``nvidia-smi -L``.

    Does not initialise CUDA, so that workers can be forked.
    """
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        entries = [entry.strip() for entry in given.split(",")]  # CUDA ignores all entries after an invalid one
        named = takewhile(lambda entry: entry and not entry.startswith("-") and entry != "NoDevFiles", entries)
        return tuple(dict.fromkeys(named))
    names: list[str] = []
    for gpu in re.split(r"^GPU (?=\d)", _nvidia_smi(), flags=re.MULTILINE)[1:]:
        names += re.findall(r"MIG .*UUID: ([^)\s]+)", gpu) or [gpu.partition(":")[0]]
    return tuple(names)


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
