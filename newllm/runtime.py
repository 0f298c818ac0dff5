"""Settings of the machine: device, threads, processes, cache, checkpoint interval. Not part of a run's signature."""

import ctypes
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from newllm.checks import MOST_THREADS, within
from newllm.errors import ConfigError

if TYPE_CHECKING:
    import torch

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
            torchrun for each process) or the cores this process may use. Sums over rows are split among threads, so
            the last bits can depend on the number of threads; a resumed run keeps the number that "auto" first gave.
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
    ) -> None:
        if threads != "auto":
            within("runtime.threads", threads, 1, MOST_THREADS, 1)
        if checkpoint_seconds is not None and checkpoint_seconds < 0:
            raise ConfigError(f"runtime.checkpoint_seconds must be at least 0; {checkpoint_seconds} was given")
        if checkpoint_steps is not None and checkpoint_steps < 1:
            raise ConfigError(f"runtime.checkpoint_steps must be at least 1; {checkpoint_steps} was given")
        default_cache = os.environ.get("NEWLLM_CACHE") or "~/.cache/newllm"
        self.cache_dir = Path(cache_dir or default_cache).expanduser()
        self.threads = _available_threads() if threads == "auto" else threads
        self.checkpoint_seconds, self.checkpoint_steps = checkpoint_seconds, checkpoint_steps
        self.progress, self.keep_memory, self.fused, self.compile = progress, keep_memory, fused, compile
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


def _available_threads() -> int:
    variable = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if variable.isdigit() and int(variable) > 0:
        return int(variable) * Place.from_environment().local_size
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
