"""What all benches share: contestants that take turns, ratios of their times, tables, figures with their machine."""

import functools
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig

from newllm.errors import NewllmError, RunError
from newllm.runtime import Runtime
from newllm.store.atomic import json_text, write_text
from newllm.store.environment import describe

PACKAGES = ("newllm", "torch", "transformers", "datasets", "hydra-core")
_PATIENCE = 5.0  # seconds in which a contestant's process may end by itself

T = TypeVar("T")
Build = Callable[[], Callable[[], object]]  # returns what is timed; pickled, so a module's function or a partial of it


# --- turns ----------------------------------------------------------------------------------------------------------


def in_turns(names: Iterable[str], rounds: int, measure: Callable[[str], T]) -> dict[str, list[T]]:
    """`measure(name)` for every contestant, once a round.

    Every second round reverses the order of the one before, and the next round starts with another contestant.
    """
    results: dict[str, list[T]] = {name: [] for name in names}
    names = list(results)
    for number in range(rounds):
        first = number // 2 % len(names)
        order = [*names[first:], *names[:first]]
        for name in order[::-1] if number % 2 else order:
            results[name].append(measure(name))
    return results


def alternate(contestants: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """Seconds per call of each contestant, one figure per round; in turns, so that a slow machine slows all of them.

    A first, untimed call of each warms caches and allocators.
    """
    for call in contestants.values():
        call()
    return in_turns(contestants, rounds, lambda name: _seconds_per_call(contestants[name], calls))


def alternate_in_processes(
    contestants: Mapping[str, Build], rounds: int, calls: int, optional: Collection[str] = ()
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Like `alternate`, with a process for each contestant, which has its own allocator, threads and compiler.

    Returns the seconds, and why contestants were left out: an `optional` one that fails when it is built or first
    called, which is when compilers work. Raises the error of any other. Each turn starts with an untimed call, since
    the caches hold another contestant's data.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads and allocator settings
    pipes, processes = {}, []
    for name, build in contestants.items():
        pipes[name], child_end = context.Pipe()
        processes.append(context.Process(target=_serve, args=(build, calls, child_end)))
        processes[-1].start()
        child_end.close()  # so that the end of the process ends the pipe

    def receive(name: str) -> Any:
        try:
            answer = pipes[name].recv()
        except (EOFError, ConnectionError):
            raise RunError(
                f"the process of {name} was killed, as the system does when memory runs out: try a smaller batch_size"
            ) from None
        if isinstance(answer, RunError):
            raise RunError(f"{name} failed: {answer}")
        if isinstance(answer, NewllmError):
            raise answer
        return answer

    def take_turn(name: str) -> float:
        pipes[name].send("go")
        return float(receive(name))

    left_out: dict[str, str] = {}
    try:
        for name in contestants:
            try:
                receive(name)
            except RunError as error:
                if name not in optional:
                    raise
                left_out[name] = str(error)
        return in_turns([name for name in contestants if name not in left_out], rounds, take_turn), left_out
    finally:
        for pipe in pipes.values():
            pipe.close()  # which ends a process that waits for its turn
        for process in processes:
            process.join(_PATIENCE)
            process.kill()  # one that is still compiling
            process.join()


def _serve(build: Build, calls: int, pipe: Connection) -> None:
    """In a contestant's process: build it, then answer every message with the seconds per call, or with an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which kills this process
    try:
        call = build()
        call()
        pipe.send("ready")
        while pipe.recv():
            call()
            pipe.send(_seconds_per_call(call, calls))
    except EOFError:  # the parent is gone
        return
    except NewllmError as error:
        pipe.send(error)
    except Exception as error:  # some of torch's errors cannot be pickled
        first = (str(error).strip().splitlines() or [""])[0]
        pipe.send(RunError(first or type(error).__name__))


def _seconds_per_call(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


# --- results --------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What `measure` returns.

    metrics: name -> number, text or list of numbers: ``ratio/<peer>`` (how many times faster newllm is than the peer,
    median of the rounds), ``ratio/<peer>/min``, ``…/max``, ``seconds/<contestant>`` (of each round).
    tables: (title, columns, rows of text), to be read at 100 columns. notes: sentences below them.
    """

    metrics: dict[str, Any]
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def setup(self) -> str:
        """``bf16, cpu, 2 threads``, for the titles of tables; from `setup_metrics`."""
        threads = self.metrics["threads"]
        return f"{self.metrics['precision']}, {self.metrics['device']}, {threads} thread{'s' if threads > 1 else ''}"

    def ratio(self, name: str, slow: Sequence[float], fast: Sequence[float]) -> str:
        """Keep how many times faster `fast` is: median, minimum and maximum of the ratios of the rounds.

        Returns them as a table cell: ``1.99 x (1.69 … 2.19)``.
        """
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        median, least, greatest = statistics.median(ratios), min(ratios), max(ratios)
        self.metrics |= {name: median, f"{name}/min": least, f"{name}/max": greatest}
        return f"{median:.2f} x ({least:.2f} … {greatest:.2f})"

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Add a table."""
        self.tables.append((title, [*columns], [[*row] for row in rows]))

    def markdown(self) -> str:
        """Tables, with numbers aligned right, and notes."""
        parts = []
        for title, columns, rows in self.tables:
            texts = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
            widths = [max(3, *map(len, column)) for column in zip(*texts, strict=True)]
            lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in texts]
            lines.insert(1, ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])])
            parts.append("\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines)]))
        return "\n\n".join([*parts, *self.notes])

    def write(self, file: Path, bench: str) -> None:
        """A .json file with the metrics, "bench" and "machine", or a .md file with the tables."""
        about = machine()
        if file.suffix == ".json":
            write_text(file, json_text({**self.metrics, "bench": bench, "machine": about}))
            return
        packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items() if name != "newllm")
        native = "native bf16" if about["native_bf16"] else "no native bf16"
        hardware = [about["cpu"], f"{about['cores']} cores", f"{about['instructions']}, {native}", *about["gpus"]]
        measured = f"Measured {about['date']} at {about['commit']} on {'; '.join(hardware)}; {packages}."
        write_text(file, f"{self.markdown()}\n\n*{measured}*\n")


def spread(times: Sequence[float], scale: float = 1.0) -> str:
    """A table cell, ``21.7 (19.1 … 24.3)``: median, minimum and maximum, times `scale`."""
    return f"{scale * statistics.median(times):.1f} ({scale * min(times):.1f} … {scale * max(times):.1f})"


def setup_metrics(cfg: DictConfig, precision: str, device: object, runtime: Runtime) -> dict[str, Any]:
    """Metrics that say what was run on what."""
    return {"model": cfg.choices.model, "precision": precision, "device": str(device), "threads": runtime.threads}


@functools.cache
def machine() -> dict[str, Any]:
    """CPU, cores, memory (GiB), instruction set, threads, GPUs, package versions, commit, date (UTC)."""
    import torch

    from newllm.precision import native_bf16

    environment = describe(device="", threads=0, precision="")
    git = environment["git"] or {}
    commit = (git.get("commit") or "")[:10]
    try:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError):  # unknown to this system
        memory = None
    return {
        "cpu": environment["cpu"],
        "cores": os.cpu_count(),
        "threads": Runtime().threads,
        "memory_gib": memory,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": native_bf16(torch.device("cpu")),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": environment["python"],
        "packages": {name: environment["packages"][name] for name in PACKAGES if name in environment["packages"]},
        "commit": f"{commit} with changes" if commit and git.get("dirty_diff_sha256") else commit or None,
        "date": datetime.now(UTC).date().isoformat(),
    }
