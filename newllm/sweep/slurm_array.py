"""How runs become job arrays: packed into tasks, grouped by need, cut below MaxArraySize, capped together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Array:
    """One array to submit.

    tasks: the runs (their numbers) of each task. devices: the processes that each of its runs trains with.
    cap: tasks that may run at a time. after: the array (its number) that must have ended before; None: no such one.
    """

    tasks: tuple[tuple[int, ...], ...]
    devices: int
    cap: int
    after: int | None = None


def arrays(
    devices: Sequence[int], runs_per_job: int, largest: int, max_running: int | None, first_run: int = 0
) -> list[Array]:
    """The arrays for runs that need so many `devices`, at most `max_running` tasks at a time over all of them.

    Arrays run side by side with a share of `max_running` each. Where there are more arrays than may run, they form
    lanes, in each of which an array follows the end of the one before. Parts of a group are of equal size, so that
    they end about together. The first of the runs has the number `first_run`.
    """
    pieces: list[tuple[int, list[tuple[int, ...]]]] = []
    for need in dict.fromkeys(devices):
        runs = [run for run, its_need in enumerate(devices, first_run) if its_need == need]
        tasks = [tuple(runs[i : i + runs_per_job]) for i in range(0, len(runs), runs_per_job)]
        pieces += [(need, part) for part in _equal_parts(tasks, largest)]
    lanes = min(len(pieces), max_running or len(pieces))
    found = []
    for i, (need, tasks) in enumerate(pieces):
        share = len(tasks) if max_running is None else max_running // lanes + (i % lanes < max_running % lanes)
        found.append(Array(tuple(tasks), need, min(share, len(tasks)), i - lanes if i >= lanes else None))
    return found


def resources(devices: int, gpus: int | None, cpus: int) -> tuple[int | None, int]:
    """(GPUs, cores) that a job asks for when each of its runs trains with `devices` processes.

    With GPUs, at least one for each process; without, `cpus` cores for each.
    """
    return (max(gpus, devices), cpus) if gpus else (None, cpus * devices)


def devices(config: Mapping[str, Any]) -> int:
    """trainer.devices of a frozen configuration."""
    return int((config.get("trainer") or {}).get("devices") or 1)


def _equal_parts(tasks: list[tuple[int, ...]], largest: int) -> list[list[tuple[int, ...]]]:
    count = -(-len(tasks) // largest)
    bounds = [len(tasks) * i // count for i in range(count + 1)]
    return [tasks[first:last] for first, last in pairwise(bounds)]
