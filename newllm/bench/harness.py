"""What all benches share: contestants in turns, ratios of their times, tables, and figures kept with their machine."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newllm.build import build
from newllm.config import compose
from newllm.store.atomic import write_json, write_text
from newllm.store.environment import describe

if TYPE_CHECKING:
    from newllm.data import Dataset

PACKAGES = ("newllm", "torch", "transformers", "datasets", "hydra-core")


def turns(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of the contestants in each round: every second round reverses the one before it, and the next starts
    with another contestant."""
    shifted = [[*names[turn % len(names) :], *names[: turn % len(names)]] for turn in range((rounds + 1) // 2)]
    return [order for forth in shifted for order in (forth, forth[::-1])][:rounds]


def alternate(contestants: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """Seconds per call of each contestant, one figure a round; in turns, so that a slow machine slows all of them.

    A first, untimed round warms caches and allocators.
    """
    for call in contestants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for order in turns(list(contestants), rounds):
        for name in order:
            seconds[name].append(per_call(contestants[name], calls))
    return seconds


def per_call(call: Callable[[], object], calls: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def discarding(call: Callable[[], object]) -> Callable[[], None]:
    """`call` without its result, which would stay alive while memory is counted."""

    def run() -> None:
        call()

    return run


class Setup:
    """A configuration of a run and what it means on this machine. Applies its runtime."""

    def __init__(self, overrides: Sequence[str]) -> None:
        from newllm.precision import resolve

        self.cfg = compose(list(overrides))
        self.runtime = build(self.cfg.runtime)
        self.runtime.apply()
        self.device = self.runtime.device()
        self.precision = resolve(self.cfg.trainer.precision, self.device)

    def data(self) -> "Dataset":
        from newllm.data import prepare

        return prepare(self.cfg.data, self.cfg.facts, seed=self.cfg.seed, runtime=self.runtime)

    @property
    def metrics(self) -> dict[str, Any]:
        about = {"model": self.cfg.choices.model, "precision": self.precision}
        return {**about, "device": str(self.device), "threads": self.runtime.threads}

    @property
    def machine(self) -> str:
        """``bf16, cpu, 2 threads``, for the title of a table."""
        return f"{self.precision}, {self.device}, {self.runtime.threads} threads"


@dataclass
class Result:
    """What `measure` returns.

    metrics: flat names to numbers, words or lists of numbers: ``ratio/<peer>`` (how many times faster than the peer
    newllm is: median of the rounds), ``ratio/<peer>/min``, ``…/max``, ``seconds/<contestant>`` (of each round).
    tables: (title, columns, rows of text), to be read at 100 columns. notes: sentences below them.
    """

    metrics: dict[str, Any]
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def ratio(self, name: str, slow: Sequence[float], fast: Sequence[float], digits: int = 2) -> str:
        """Keep how many times faster `fast` is: median, least and greatest of the rounds' own ratios.

        Returns them as the cell of a table: ``1.99 x (1.69 … 2.19)``.
        """
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        found = statistics.median(ratios), min(ratios), max(ratios)
        self.metrics |= dict(zip((name, f"{name}/min", f"{name}/max"), found, strict=True))
        return "{:.{d}f} x ({:.{d}f} … {:.{d}f})".format(*found, d=digits)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.tables.append((title, [*columns], [[*row] for row in rows]))

    def markdown(self) -> str:
        """Tables, numbers to the right, and notes."""
        parts = []
        for title, columns, rows in self.tables:
            texts = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
            widths = [max(3, *map(len, column)) for column in zip(*texts, strict=True)]
            lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in texts]
            lines.insert(1, ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])])
            parts.append("\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines)]))
        return "\n\n".join([*parts, *self.notes])

    def write(self, file: Path, bench: str) -> None:
        """A .json file with the metrics beside "bench" and "machine", or a .md file with the tables."""
        about = machine()
        if file.suffix == ".json":
            write_json(file, {**self.metrics, "bench": bench, "machine": about})
            return
        packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items() if name != "newllm")
        native = "native bf16" if about["native_bf16"] else "no native bf16"
        hardware = [about["cpu"], f"{about['cores']} cores", f"{about['instructions']}, {native}", *about["gpus"]]
        measured = f"Measured {about['date']} at {about['commit']} on {'; '.join(hardware)}; {packages}."
        write_text(file, f"{self.markdown()}\n\n*{measured}*\n")


def machine() -> dict[str, Any]:
    """CPU, its cores, memory (GiB), what it multiplies natively, threads, versions, commit, day (UTC)."""
    import torch

    from newllm.precision import native_bf16
    from newllm.runtime import Runtime

    found = describe(device="", threads=0, precision="")
    git = found["git"] or {}
    commit = (git.get("commit") or "")[:10]
    try:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError):  # the system does not say
        memory = None
    return {
        "cpu": found["cpu"],
        "cores": os.cpu_count(),
        "threads": Runtime().threads,
        "memory_gib": memory,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": native_bf16(torch.device("cpu")),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": found["python"],
        "packages": {name: found["packages"][name] for name in PACKAGES if name in found["packages"]},
        "commit": f"{commit} with changes" if commit and git.get("dirty_diff_sha256") else commit or None,
        "date": datetime.now(UTC).date().isoformat(),
    }
