"""Which runs of a launch train together, and how many of them at once."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from newllm.errors import ConfigError
from newllm.pack.compatibility import Config, differing, hindrance, key, unpackable
from newllm.store.atomic import write_json
from newllm.store.run_directory import RunDirectory
from newllm.sweep.slots import Grant

SIZES = (1, 2, 4, 8, 16)
GAIN = 1.05  # by which a pack has to be faster than runs by themselves
FILE = Path(".sweep") / "pack.json"  # what has been measured: signature of what packed runs share -> speeds

Pack = int | Literal["auto"] | None


class Meter(Protocol):
    """Where runs can be timed before they start."""

    def measure(
        self, runs: Sequence[Path], sizes: Sequence[int], environment: Mapping[str, str]
    ) -> tuple[str | None, list[float]]: ...


@dataclass
class Packing:
    """packs: every run once, in order. notes: lines for the user."""

    packs: list[list[Path]]
    size: int = 1
    notes: list[str] = field(default_factory=list)


def pack(
    sweep: Path, runs: Sequence[Path], size: Pack, meter: Meter, grant: Grant, slots: int, threads: Mapping[str, int]
) -> Packing:
    """Put together the frozen `runs` of the folder `sweep` that can train together.

    Args:
        size: runs in a pack; "auto": the size at which most steps are made in a second, by measurement.
        grant: what a worker will have. slots: workers at once; "auto" leaves none of them without a pack.
        threads: run's name -> threads that it had before: packed runs share theirs.

    Raises ConfigError if a size is given and the runs' models cannot be packed.
    """
    if size in (None, 1) or len(runs) < 2:
        return Packing([[run] for run in runs])
    configs = _configs(runs)
    groups: dict[str, list[Path]] = {}
    for run in runs:
        mark = f"{key(configs[run])} {threads.get(run.name)}" if run in configs else str(run)
        groups.setdefault(mark, []).append(run)
    fit = {mark: group for mark, group in groups.items() if len(group) > 1 and not hindrance(configs[group[0]])}
    notes: list[str] = []
    if fit:
        mark, largest = max(fit.items(), key=lambda item: len(item[1]))
        if size == "auto":
            size, note = _measured(sweep, mark, largest, meter, grant, slots)
            notes.append(note)
        elif refused := meter.measure(largest[:2], [], grant.environment())[0]:
            raise ConfigError(f"pack={size}: {refused}")
    together = size if isinstance(size, int) else 1
    packs = [share for mark, group in groups.items() for share in _shares(group, together if mark in fit else 1)]
    alone = [group[0] for mark, group in groups.items() if mark not in fit and group[0] in configs]
    if together > 1 and alone:
        other = next(configs[group[0]] for group in fit.values())
        notes.append(_why_alone(len(alone), configs[alone[0]], other))
    order = {run: place for place, run in enumerate(runs)}
    packs.sort(key=lambda pack: order[pack[0]])
    return Packing(packs, max(map(len, packs)), notes)


def require_packable(configs: Sequence[Config], size: Pack) -> None:
    """ConfigError, with the keys that differ, if packs were asked for and no two of these runs can be packed."""
    if isinstance(size, int) and size > 1 and (why := unpackable(configs)):
        raise ConfigError(f"pack={size}: {why}.")


def _configs(runs: Sequence[Path]) -> dict[Path, Config]:
    """The frozen configurations that can be read; starting the others will tell why they cannot."""
    found: dict[Path, Config] = {}
    for run in runs:
        with suppress(ConfigError):
            config = RunDirectory(run).config()
            if "trainer" in config:
                found[run] = config
    return found


def _measured(sweep: Path, mark: str, group: Sequence[Path], meter: Meter, grant: Grant, slots: int) -> tuple[int, str]:
    """The size at which most runs' steps are made in a second, and a line that says so."""
    sizes = [size for size in SIZES if size <= max(1, len(group) // slots)]
    if len(sizes) == 1:
        return 1, "pack=auto: there are too few runs to keep every slot busy in packs, so that each trains alone."
    name = hashlib.sha256(f"{mark} {grant} {sizes}".encode()).hexdigest()[:8]
    known = _known(sweep)
    speeds = known.get(name)
    if speeds is None:
        refused, speeds = meter.measure(group[: sizes[-1]], sizes, grant.environment())
        if refused or not speeds:
            return 1, f"pack=auto: {refused or 'nothing could be measured'}; each run trains alone."
        (sweep / FILE).parent.mkdir(parents=True, exist_ok=True)
        write_json(sweep / FILE, {**known, name: speeds})
    best = max(range(len(sizes)), key=lambda i: speeds[i])
    listed = ", ".join(f"{size}: {speed:,.3g}" for size, speed in zip(sizes, speeds, strict=True))
    if speeds[best] < GAIN * speeds[0]:
        return 1, f"pack=auto: packing does not pay here (steps per second by runs in a pack: {listed})."
    gain = f"{speeds[best] / speeds[0]:.2f} x the steps per second of one by one"
    return sizes[best], f"pack=auto: packs of {sizes[best]} make {gain} (by runs in a pack: {listed})."


def _known(sweep: Path) -> dict[str, list[float]]:
    with suppress(OSError, ValueError):
        return dict(json.loads((sweep / FILE).read_text(encoding="utf-8")))
    return {}


def _shares(group: Sequence[Path], size: int) -> list[list[Path]]:
    """As few packs of at most `size` as there can be, as equal as they can be."""
    number = -(-len(group) // size)
    return [list(group[i * len(group) // number : (i + 1) * len(group) // number]) for i in range(number)]


def _why_alone(number: int, config: Config, other: Config) -> str:
    keys = ", ".join(differing([config, other])) or "the threads that it began with"
    if number == 1:
        return f"1 run trains alone, since no other shares its {keys}."
    return f"{number} runs train alone, since no other shares their {keys}."
