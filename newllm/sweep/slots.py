"""The GPUs and CPU cores of a machine, shared out among runs."""

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from newllm.errors import ConfigError


@dataclass(frozen=True)
class Demand:
    """The resources that one run asks for.

    Args:
        devices: processes of the run; on a GPU machine, each has its own GPU.
        threads: CPU threads of all its processes together; None: the launcher decides.
    """

    gpu: bool = False
    devices: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class Grant:
    """The resources given to one run: GPUs by their CUDA names, or units of CPU cores."""

    threads: int
    units: int = 0
    gpus: tuple[str, ...] = ()
    hide_gpus: bool = False

    def environment(self) -> dict[str, str]:
        """The environment variables that limit a worker to its grant."""
        shown = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus or self.hide_gpus else {}
        return {"OMP_NUM_THREADS": str(self.threads), **shown}


def demand(config: Mapping[str, Any], gpus: bool, earlier_threads: int | None = None) -> Demand:
    """The demand of a run with this effective configuration on a machine with or without `gpus`.

    earlier_threads: those that it began with, in case its configuration gives no number.
    Raises ConfigError if the run names a GPU, since the launcher assigns them.
    """
    runtime, trainer = config.get("runtime") or {}, config.get("trainer") or {}
    device, threads, devices = runtime.get("device", "auto"), runtime.get("threads", "auto"), trainer.get("devices", 1)
    if gpus and str(device).startswith("cuda:") and device != "cuda:0":
        raise ConfigError(
            f"runtime.device={device} names one GPU, while a launcher gives each run its own; leave runtime.device out "
            f"and type CUDA_VISIBLE_DEVICES={str(device)[5:]} before the command to use that one only"
        )
    return Demand(
        gpu=gpus and (device == "auto" or str(device).startswith("cuda")),
        devices=devices if isinstance(devices, int) and devices > 0 else 1,
        threads=threads if isinstance(threads, int) else earlier_threads,
    )


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

    def take(self, want: Demand) -> Grant | None:
        """Resources for one run; None while not enough is free. A run that asks for more than the machine has gets
        all of it."""
        number = min(want.devices, len(self.gpus)) if want.gpu else 0
        threads = want.threads or (self.threads * want.devices if want.gpu else max(self.threads, want.devices))
        units = min(number or -(-max(threads, want.devices) // self.threads), self.count)
        free = sorted((gpu for gpu in self.gpus if self._shares[gpu]), key=lambda gpu: -self._shares[gpu])
        if units > self._units or len(free) < number:
            return None
        self._units -= units
        for gpu in free[:number]:
            self._shares[gpu] -= 1
        return Grant(threads, units, tuple(free[:number]), hide_gpus=bool(self.gpus) and not want.gpu)

    def give(self, grant: Grant) -> None:
        """Return the resources of a run that has ended."""
        self._units += grant.units
        for gpu in grant.gpus:
            self._shares[gpu] += 1


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(
    environment: Mapping[str, str] | None = None, listing: Callable[[], str] | None = None
) -> tuple[str, ...]:
    """CUDA names of the GPUs this process may use: the entries of CUDA_VISIBLE_DEVICES (numbers, UUIDs, MIG
    instances), else the numbers of the GPUs, or their MIG instances, from ``nvidia-smi -L``.

    Does not initialise CUDA, so that workers can be forked.
    """
    given = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        entries = [entry.strip() for entry in given.split(",")]  # CUDA ignores all entries after an invalid one
        named = takewhile(lambda entry: entry and not entry.startswith("-") and entry != "NoDevFiles", entries)
        return tuple(dict.fromkeys(named))
    names: list[str] = []
    for gpu in re.split(r"^GPU (?=\d)", (listing or _nvidia_smi)(), flags=re.MULTILINE)[1:]:
        names += re.findall(r"MIG .*UUID: ([^)\s]+)", gpu) or [gpu.partition(":")[0]]
    return tuple(names)


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
