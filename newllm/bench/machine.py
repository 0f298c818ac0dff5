"""The machine that figures were measured on."""

import os
from datetime import UTC, datetime
from typing import Any

from newllm.store.environment import describe

_PACKAGES = ("newllm", "torch", "transformers", "datasets", "hydra-core")


def machine() -> dict[str, Any]:
    """CPU, its cores, memory (GiB), what it multiplies natively, threads, versions, commit, day (UTC)."""
    import torch

    from newllm.runtime import Runtime
    from newllm.training.precision import native_bf16

    found = describe(device="", threads=0, precision="")
    git = found["git"] or {}
    commit = (git.get("commit") or "")[:10]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": found["cpu"],
        "cores": os.cpu_count(),
        "threads": Runtime().threads,
        "memory_gib": _memory_gib(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": native_bf16(torch.device("cpu")),
        "gpus": gpus,
        "python": found["python"],
        "packages": {name: found["packages"][name] for name in _PACKAGES if name in found["packages"]},
        "commit": f"{commit} with changes" if commit and git.get("dirty_diff_sha256") else commit or None,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _memory_gib() -> float | None:
    """None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError):
        return None
