"""Settings of the machine: device, threads, processes, cache, checkpoint interval. Not part of a run's signature."""

import ctypes
import math
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from newllm.checks import MOST_THREADS, within
from newllm.errors import ConfigError

if TYPE_CHECKING:
    import torch

LOAD_SECONDS = 0.2  # how long the load of the cores is measured

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


@dataclass(frozen=True)
class Place:
    """The rank of this process among the `size` processes of a run, and among those on this machine.

    launched: torchrun, SLURM or another launcher has started all ranks; otherwise rank 0 starts them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launched: bool = False

    @classmethod
    def from_environment(cls) -> "Place":
        """Read torchrun's variables RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, or those of SLURM's srun."""
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
        if "RANK" not in os.environ and tasks > 1:  # a task started by srun or submitit: set torchrun's variables
            from submitit.slurm.slurm import SlurmJobEnvironment

            task = SlurmJobEnvironment()
            step = int(os.environ.get("SLURM_STEP_ID", 0))
            variables = {
                "RANK": task.global_rank,
                "WORLD_SIZE": tasks,
                "LOCAL_RANK": task.local_rank,
                "LOCAL_WORLD_SIZE": tasks // task.num_nodes,
                "MASTER_ADDR": task.hostnames[0],
                "MASTER_PORT": 20000 + (int(task.raw_job_id) * 31 + step) % 40000,
            }
            os.environ.update({name: str(value) for name, value in variables.items()})
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            return cls()
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        return cls(rank, size, int(os.environ.get("LOCAL_RANK", rank)), local_size, launched=True)

    @classmethod
    def of_run(cls, devices: int) -> "Place":
        """The place in a run with trainer.devices=`devices`. Raises ConfigError if another number has been launched."""
        place = cls.from_environment()
        if not place.launched:
            return cls(0, devices, 0, devices)
        if place.size != devices:
            raise ConfigError(
                f"WORLD_SIZE says that {place.size} processes have been started for this run, and "
                f"trainer.devices={devices}; leave trainer.devices out, or start {devices}."
            )
        return place


class Runtime:
    """Settings of the machine rather than of the experiment.

    Args:
        device: "auto" (CUDA, else MPS, else CPU) or a torch device such as "cpu" or "cuda:1".
        threads: CPU threads of a run on a machine, shared by its processes there; "auto" is OMP_NUM_THREADS (under
            torchrun for each process), else the cores that this process may use and that are not busy with other work
            (`load_note` says so then). Sums over rows are split among threads, so the last bits can depend on the
            number of threads; a resumed run keeps the number that "auto" first gave, and an evaluation takes it too.
        cache_dir: folder of tokenizers and token stores; None is $NEWLLM_CACHE or ~/.cache/newllm.
        checkpoint_seconds: longest time between two checkpoints; None: only at the end of an epoch.
        checkpoint_steps: largest number of steps between two checkpoints; None: no limit.
        progress: show a progress bar while training, on terminals only.
        keep_memory: keep freed memory for the next step (glibc), which avoids page faults for large tensors in every
            step. The process stays at its largest size.
        fused: compute the loss together with the head, in chunks, and use the fused AdamW that clips in its own pass;
            False uses torch's plain ones, for comparison.
        compile: torch.compile for the training steps. "auto" measures in long runs whether it pays back
            (newllm.training.compilation); runs in a pack, on several devices or after a first phase are
            never compiled.
        graph: replay training steps as a CUDA graph, on one CUDA device, without other runs in a pack. The numbers
            are the same. "auto": true, unless the model cannot be recorded.
        trunk: with optim.schedule=wsd, keep the checkpoint with which the cool-down begins, and begin with that of
            another run in the same folder that differs only in its budget and its cool-down (newllm.training.trunk).
            The numbers are the same; times include the trunk's.
    """

    def __init__(
        self,
        device: str = "auto",
        threads: int | Literal["auto"] = "auto",
        cache_dir: str | None = None,
        checkpoint_seconds: float | None = 60.0,
        checkpoint_steps: int | None = None,
        progress: bool = True,
        keep_memory: bool = True,
        fused: bool = True,
        compile: bool | Literal["auto"] = "auto",
        graph: bool | Literal["auto"] = "auto",
        trunk: bool = True,
    ) -> None:
        if threads != "auto":
            within("runtime.threads", threads, 1, MOST_THREADS, 1)
        if checkpoint_seconds is not None and checkpoint_seconds < 0:
            raise ConfigError(f"runtime.checkpoint_seconds must be at least 0; {checkpoint_seconds} was given")
        if checkpoint_steps is not None and checkpoint_steps < 1:
            raise ConfigError(f"runtime.checkpoint_steps must be at least 1; {checkpoint_steps} was given")
        default_cache = os.environ.get("NEWLLM_CACHE") or "~/.cache/newllm"
        self.cache_dir = Path(cache_dir or default_cache).expanduser()
        self.threads, self.load_note = _automatic_threads() if threads == "auto" else (threads, None)
        self.checkpoint_seconds, self.checkpoint_steps = checkpoint_seconds, checkpoint_steps
        self.progress, self.keep_memory, self.fused, self.compile = progress, keep_memory, fused, compile
        self.graph, self.trunk = graph, trunk
        self._device = device

    def checkpoint_due(self, step: int, saved: float) -> bool:
        """Whether to write a checkpoint after step `step`; the last was written at `saved` (time.monotonic)."""
        if self.checkpoint_steps is not None and step % self.checkpoint_steps == 0:
            return True
        return self.checkpoint_seconds is not None and time.monotonic() - saved >= self.checkpoint_seconds

    def device(self) -> "torch.device":
        """The device. Raises ConfigError if this machine does not have it."""
        import torch

        if self._device == "auto":
            best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
            return torch.device(best)
        try:
            device = torch.device(self._device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise ConfigError(
                f"runtime.device={self._device} is not on this machine; runtime.device=auto takes what there is, "
                "runtime.device=cpu always works"
            ) from None
        if device.type == "meta":
            raise ConfigError("runtime.device=meta holds no numbers; try runtime.device=auto")
        return device

    def apply(self, processes: int = 1) -> None:
        """Set this process's share of the threads, memory options and deterministic kernels."""
        import torch

        torch.set_num_threads(max(1, self.threads // processes))
        if self.keep_memory:
            keep_freed_memory()
        if torch.cuda.is_available():
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks instead of returning them to the kernel. No-op without glibc."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # no glibc
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # read as the largest size_t: never


def available_cores() -> int:
    """The CPU cores that this process may use: those of its affinity, at most its cgroup's quota (of a container)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _cgroup_quota())))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs' worth of time that this process's cgroups allow, infinity without a limit. Both versions of cgroups."""
    quotas = [math.inf]
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            top = root if not controllers else root / controllers
            if controllers and "cpu" not in controllers.split(","):
                continue
            inner = top / path.lstrip("/")
            for folder in (inner, *inner.parents):  # a limit of an outer group holds for inner ones
                with suppress(OSError, ValueError, ZeroDivisionError):
                    if controllers:
                        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                    else:
                        quota, period = (folder / "cpu.max").read_text().split()
                    if quota != "max" and int(quota) > 0:
                        quotas.append(int(quota) / int(period))
                if folder == top:
                    break
    return min(quotas)


def _busy_cores(seconds: float = LOAD_SECONDS) -> float:
    """How many of the cores that this process may use are at work for others, measured for a moment while this thread
    waits; where the system has no times of cores, the load average of the last minute, or 0."""
    before = _core_times()
    time.sleep(seconds if before else 0.0)
    after = _core_times()
    passed = {core: after[core][1] - total for core, (_, total) in before.items() if core in after}
    if any(passed.values()):
        return sum((after[core][0] - before[core][0]) / ticks for core, ticks in passed.items() if ticks)
    with suppress(OSError, AttributeError):
        return os.getloadavg()[0]
    return 0.0


def _core_times() -> dict[int, tuple[int, int]]:
    """Core that this process may use -> ticks at work, ticks in all; from Linux's /proc/stat, elsewhere empty."""
    times = {}
    with suppress(OSError, ValueError, AttributeError):
        allowed = os.sched_getaffinity(0)
        for core, columns in re.findall(r"^cpu(\d+) ([\d ]+)$", Path("/proc/stat").read_text(), re.MULTILINE):
            ticks = [int(column) for column in columns.split()[:8]]  # user, nice, system, idle, iowait, interrupts …
            if int(core) in allowed:
                times[int(core)] = (sum(ticks) - sum(ticks[3:5]), sum(ticks))
    return times


def _automatic_threads() -> tuple[int, str | None]:
    """The threads of runtime.threads=auto, and a sentence if other work makes them fewer than the cores."""
    variable = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if re.fullmatch(r"[0-9]{1,4}", variable) and int(variable):
        return int(variable) * Place.from_environment().local_size, None
    cores = available_cores()
    busy = min(_busy_cores(), cores) if cores > 1 else 0.0
    threads = max(1, round(cores - busy))
    if threads == cores:
        return threads, None
    return threads, (
        f"{busy:.1f} of {cores} cores are busy with other work, so runtime.threads=auto takes {threads}; the last bits "
        f"of results depend on the number, which runtime.threads={threads} fixes"
    )
