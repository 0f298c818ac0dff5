"""Which runs of a launch train together, and how many of them at once."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from newllm.errors import ConfigError, NewllmError
from newllm.pack.compatibility import Config, differing, pack_key, reason_not_to_pack, reason_to_train_alone
from newllm.store.intact import Damaged, read_json, write_json
from newllm.store.run_directory import RunDirectory
from newllm.sweep.slots import Grant
from newllm.sweep.workers import in_child

SIZES = (1, 2, 4, 8, 16)
GAIN = 1.05  # least speed-up over separate runs for which packing is used
FILE = Path(".sweep") / "pack.json"  # measurements: hash of what the packed runs share -> speeds

Measure = Callable[[Sequence[Path], Sequence[int], Grant], list[float]]
Pack = int | Literal["auto"] | None


@dataclass
class Packing:
    """packs: the runs of each pack, every run once. notes: lines for the user."""

    packs: list[list[Path]]
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        return max(map(len, self.packs))


def speeds(runs: Sequence[Path], sizes: Sequence[int], grant: Grant) -> list[float]:
    """Training steps per second in packs of each of these sizes, timed in a process with this grant."""

    def measured() -> list[float]:
        os.environ.update(grant.environment())
        from newllm.pack.measure import measure

        return measure(runs, sizes)

    return list(in_child(measured))


def pack(
    sweep: Path,
    runs: Sequence[Path],
    size: Pack,
    grant: Grant,
    slots: int,
    threads: Mapping[str, int],
    measure: Measure = speeds,
) -> Packing:
    """Group the frozen `runs` of the folder `sweep` into packs that can train together.

    Args:
        size: runs in a pack; "auto": the size with the most training steps per second, by measurement.
        grant: the resources of a worker. slots: concurrent workers; "auto" keeps all of them busy.
        threads: name of a run to resume -> threads that it began with; packed runs must have the same.
        measure: measures packs of these sizes; without sizes, it only raises if the runs cannot be packed.

    Raises ConfigError if a size is given and the models of the runs cannot be packed.
    """
    if size in (None, 1) or len(runs) < 2:
        return Packing([[run] for run in runs])
    configs: dict[Path, Config] = {}
    groups: dict[str, list[Path]] = {}  # by what packed runs must have in common
    for run in runs:
        common = str(run)
        with suppress(ConfigError):  # starting the run will report why it cannot be read
            if not RunDirectory(run).is_done() and "trainer" in (config := RunDirectory(run).config()):
                configs[run] = config
                common = f"{pack_key(config)} {threads.get(run.name, grant.threads)}"
        groups.setdefault(common, []).append(run)
    packable = {
        common: group
        for common, group in groups.items()
        if len(group) > 1 and not reason_to_train_alone(configs[group[0]])
    }
    notes: list[str] = []
    together = 1
    if packable:
        common, largest = max(packable.items(), key=lambda item: len(item[1]))
        if size == "auto":
            together, note = _best_size(sweep, common, largest, grant, slots, measure)
            notes.append(note)
        elif size is not None:
            together = size
            try:
                measure(largest[:2], [], grant)
            except ConfigError as error:
                raise ConfigError(f"pack={size}: {error}") from None
    packs = []
    for common, group in groups.items():  # as few packs as possible, of about equal size
        number = -(-len(group) // (together if common in packable else 1))
        packs += [group[i * len(group) // number : (i + 1) * len(group) // number] for i in range(number)]
    order = {run: number for number, run in enumerate(runs)}
    packs.sort(key=lambda pack: order[pack[0]])
    alone = [group[0] for common, group in groups.items() if common not in packable and group[0] in configs]
    if together > 1 and alone:
        packed = configs[next(iter(packable.values()))[0]]
        keys = ", ".join(differing([configs[alone[0]], packed])) or "the number of threads it began with"
        some, its = ("1 run trains", "its") if len(alone) == 1 else (f"{len(alone)} runs train", "their")
        notes.append(f"{some} alone, since no other shares {its} {keys}.")
    return Packing(packs, notes)


def require_packable(configs: Sequence[Config], size: Pack) -> None:
    """Raises ConfigError with the differing keys if packs were requested and no two of these runs can be packed."""
    if isinstance(size, int) and size > 1 and (why := reason_not_to_pack(configs)):
        raise ConfigError(f"pack={size}: {why}.")


def _best_size(
    sweep: Path, common: str, group: Sequence[Path], grant: Grant, slots: int, measure: Measure
) -> tuple[int, str]:
    """The size with the most training steps per second, and a line that says so."""
    sizes = [size for size in SIZES if size <= max(1, len(group) // slots)]
    if len(sizes) == 1:
        return 1, "pack=auto: there are too few runs to keep every slot busy with packs, so each run trains alone."
    name = hashlib.sha256(f"{common} {grant} {sizes}".encode()).hexdigest()[:8]
    known: dict[str, list[float]] = {}
    with suppress(Damaged):  # measured again
        known = read_json(sweep / FILE) or {}
    found = known.get(name)
    if found is None:
        try:
            found = measure(group[: sizes[-1]], sizes, grant)
        except NewllmError as error:
            return 1, f"pack=auto: {error}; each run trains alone."
        (sweep / FILE).parent.mkdir(parents=True, exist_ok=True)
        write_json(sweep / FILE, {**known, name: found})
    best = max(range(len(sizes)), key=lambda i: found[i])
    listed = ", ".join(f"{size}: {speed:,.3g}" for size, speed in zip(sizes, found, strict=True))
    if found[best] < GAIN * found[0]:
        return 1, f"pack=auto: packing does not pay here (steps per second by runs in a pack: {listed})."
    gain = f"{found[best] / found[0]:.2f} x the steps per second of separate runs"
    return sizes[best], f"pack=auto: packs of {sizes[best]} make {gain} (by runs in a pack: {listed})."
