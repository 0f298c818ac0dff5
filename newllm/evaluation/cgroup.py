"""The memory that a job's cgroup leaves it: containers and SLURM set limits of which /proc/meminfo does not know."""

import re
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")
# Version 2, then version 1: where its folders hang, then limit, use, and what of the use is file cache that can go.
_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_in_cgroup() -> int | None:
    """Bytes that this process may still take by the tightest limit of the cgroups it is in; None without a limit."""
    free = [one for path in _own() for files in _FILES for one in _along(path, *files)]
    return min(free, default=None)


def _own() -> set[str]:
    """Paths of this process' cgroups; the root as well, which is what a container sees of its own."""
    lines = _SELF.read_text().splitlines() if _SELF.exists() else []
    return {"/", *(line.split(":", 2)[2] for line in lines if line.count(":") >= 2)}


def _along(path: str, mount: str, limit: str, used: str, cached: str) -> list[int]:
    """What is free in the cgroup at `path` and in those around it."""
    root = _MOUNT / mount
    folder = root / path.strip("/")
    found = []
    for one in (folder, *folder.parents):
        most = _number(one / limit)
        if most is not None:
            stat = (one / "memory.stat").read_text() if (one / "memory.stat").exists() else ""
            reclaimable = re.search(rf"^{cached} (\d+)$", stat, re.MULTILINE)
            found.append(max(0, most - (_number(one / used) or 0) + (int(reclaimable[1]) if reclaimable else 0)))
        if one == root:
            break
    return found


def _number(file: Path) -> int | None:
    """The number in a file; None for none, or for "max"."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
