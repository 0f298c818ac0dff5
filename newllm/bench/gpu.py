"""One CUDA GPU in a few minutes: steps, kernels, decoding, packed and shared runs, and goals that they should reach.

Each section has a process of its own, and each figure is in the file of out=FILE as soon as it is known: a section that
crashes or hangs loses no other. On a machine without a GPU, device=cpu runs the same code on small shapes.

  sections   which, in this order       device    cuda or cpu
  limit      seconds after which a section is ended
  seconds    of all sections; those that would begin later are left out
"""

import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm import bench
from newllm.bench import train_step
from newllm.bench.harness import Result, alternate
from newllm.bench.sweep import run_module, time_sweep
from newllm.bench.train_step import newllm_step, synchronized
from newllm.errors import ConfigError, RunError
from newllm.precision import allow_tf32, autocast
from newllm.runtime import Runtime
from newllm.suggest import did_you_mean
from newllm.training.cross_entropy import linear_cross_entropy
from newllm.training.memory import peak_bytes

DEFAULTS: list[str] = []
Figures = Iterator[tuple[str, Any]]  # names of figures and what was measured, one after another
_PATIENCE = 5.0  # seconds in which a section's process may end after its last figure

# --- the sections that no other bench measures; `small` is for a CPU -------------------------------------------------


def peak(small: bool) -> Figures:
    """The card's own speeds: matrix products of 8192 x 8192, a copy of 2 GiB, the start of a small kernel."""
    device, size = Runtime().device(), 64 if small else 8192
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False), ("fp32", torch.float32, False), ("tf32", torch.float32, True),
    ):  # fmt: skip
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        allow_tf32(tf32)
        seconds = _seconds(partial(torch.matmul, a, b), device)
        yield f"matmul_{name}_tflops", [2e-12 * size**3 / one for one in seconds]
    source = torch.zeros(2 * size, 2 * size, 8, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    yield "copy_tb_per_second", [2e-12 * source.nbytes / one for one in _seconds(partial(target.copy_, source), device)]
    number = torch.zeros(1, device=device)
    yield "kernel_start_us", [1e3 * one for one in _seconds(lambda: [number.add_(1) for _ in range(1000)], device)]


def head(small: bool) -> Figures:
    """Seconds and peak bytes of the loss with its head, forward and backward: ours by chunk size, and torch's."""
    runtime, (rows, width) = Runtime(), (64, 16) if small else (32768, 512)
    runtime.apply()
    device = runtime.device()
    theirs: dict[str, Callable[..., Tensor]] = {"logits": lambda h, w, y: F.cross_entropy(F.linear(h, w).float(), y)}
    if device.type == "cuda":
        theirs["logits_compiled"] = torch.compile(theirs["logits"])
    if hasattr(F, "linear_cross_entropy"):
        theirs["torch_fused"] = F.linear_cross_entropy
    ours = partial(linear_cross_entropy, total=float(rows), outermost=True)
    losses = {f"chunk_{size}": partial(ours, chunk=size) for size in (1024, 4096, 8192, 32768)} | theirs

    def call(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        with autocast(device, "bf16"):
            value = loss(*inputs)
        torch.autograd.grad(value, inputs[:2])

    for vocabulary in (128,) if small else (50304, 4096):
        hidden, weight = (torch.randn(n, width, device=device, requires_grad=True) for n in (rows, vocabulary))
        inputs = hidden, weight, torch.arange(rows, device=device) % vocabulary
        for name, loss in losses.items():
            yield f"seconds/{vocabulary}/{name}", _tried(_seconds, partial(call, loss, inputs), device)
            yield f"peak_bytes/{vocabulary}/{name}", _tried(peak_bytes, partial(call, loss, inputs), inputs, device)


def profile(small: bool) -> Figures:
    """The kernels of a step without a CUDA graph that take longest: name, microseconds, number of calls."""
    kind = "self_device_time_total" if Runtime().device().type == "cuda" else "self_cpu_time_total"
    for name, words in {"big": _BIG, "tiny": _TINY}.items():
        step = newllm_step(_run_words([*words, "runtime.graph=false"], small))
        for _ in range(3):
            step()
        with torch.profiler.profile() as profiler:
            step()
        events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, kind))
        yield name, [[event.key, getattr(event, kind), event.count] for event in events[:25]]


def encodings(small: bool) -> Figures:
    """Seconds of a step with encodings whose bias is a row or a matrix, with and without a CUDA graph."""
    choices = product(("rope", "alibi", "t5", "fire", "kerple_log", "cope"), ("mha", "mla"), ("true", "false"))
    for encoding, attention, graph in list(choices)[: 2 if small else None]:
        words = [f"pos_encoding={encoding}", f"attention={attention}", f"runtime.graph={graph}"]
        name = f"seconds/{encoding}/{attention}/{'graph' if graph == 'true' else 'eager'}"
        yield name, _tried(_step_seconds, _run_words([*_BIG, *words], small))


def sharing(small: bool) -> Figures:
    """Wall seconds of a sweep of eight runs: one after another, all at once on the GPU, and packed."""
    runs = 2 if small else 8
    words = [*_run_words([*_TINY, "samples=8000"], small), "eval=[loss]", f"seeds={runs}"]
    ways = {
        "alone": "hydra.launcher.slots=1",
        "shared": f"hydra.launcher.jobs_per_gpu={runs}",
        "packed": f"pack={runs}",
    }

    def sweep(way: str, folder: Path) -> None:
        run_module(folder, "newllm.train", "-m", *words, ways[way])

    for way in ways:
        yield f"seconds/{way}", _tried(time_sweep, way, partial(sweep, way), runs)


# --- the table of sections -------------------------------------------------------------------------------------------

_BIG = ["model=pythia_70m", "batch_size=32", "seq_len=1024"]
_TINY = ["model=tiny", "batch_size=32", "seq_len=128"]
_14M = ["model=pythia_70m", "model.hidden_size=128", "model.heads=4", "model.mlp_size=512"]
SECTIONS: dict[str, tuple[str | Callable[[bool], Figures], list[str]]] = {  # bench or function, words; the goals' first
    "peak": (peak, []),
    "big": ("train", [*_BIG, "compiled=false", "variants=true", "rounds=3", "steps=10"]),
    "tiny": ("train", [*_TINY, "compiled=false", "variants=true", "rounds=3", "steps=30"]),
    "decode_32k": ("decode", ["contexts=32768", "batch=16", "rounds=3", "peer=false"]),
    "big_compiled": ("train", [*_BIG, "rounds=3", "steps=10"]),
    "sharing": (sharing, []),
    "pack": ("pack", ["packs=8", "batches=8,32", "lengths=128", "rounds=3"]),
    "pack_14m": ("pack", [*_14M, "packs=8", "batches=8", "lengths=512", "rounds=3"]),
    "pack_70m": ("pack", ["model=pythia_70m", "packs=8", "batches=8", "lengths=512", "rounds=3"]),
    "attention": ("attention", ["lengths=1024,8192", "batch=4", "rounds=3"]),
    "encodings": (encodings, []),
    "memory": ("train", [*_BIG, "memory=true"]),
    "head": (head, []),
    "tiny_compiled": ("train", [*_TINY, "rounds=3", "steps=30"]),
    "decode_4k": ("decode", ["contexts=4096", "batch=16", "rounds=3"]),
    "profile": (profile, []),
}
_SMALL_MODEL = ["hidden_size=32", "num_layers=1", "heads=2", "mlp_size=64", "vocab_size=512"]
_SMALL_RUN = [f"model.{size}" for size in _SMALL_MODEL] + ["runtime.threads=1"]
_SMALL = {  # bench -> words on a CPU
    "train": [*_SMALL_RUN, "data.vocab_size=512", "samples=40", "seq_len=32", "batch_size=2", "rounds=1", "steps=1"],
    "decode": [*_SMALL_RUN, "contexts=8", "batch=2", "kv_dim=16", "rounds=1", "tokens=1"],
    "pack": [*_SMALL_RUN, "data.vocab_size=512", "samples=40", "packs=2", "batches=2", "lengths=16", "rounds=1"],
    "attention": ["lengths=16", "batch=1", "heads=2", "width=8", "rotary=8", "rounds=1"],
}
GOALS = {  # figure -> at least, of what
    "big/share_of_peak": (0.45, "pythia_70m, 32 x 1024: matrix products a second, of those that the card can do"),
    "big_compiled/ratio/transformers_compiled": (1.3, "the same: a step of transformers, compiled, over ours"),
    "tiny/ratio/newllm_eager": (5.0, "tiny, 32 x 128: a step without a CUDA graph over one with it"),
    "decode_32k/ratio/mla_over_mha/32768": (2.0, "decoding 16 rows after 32,768 tokens: speed of MLA over MHA's"),
    "sharing/packed_over_alone": (4.0, "8 runs of tiny: seconds one after another over packed"),
    "sharing/packed_over_shared": (1.5, "8 runs of tiny: seconds all at once over packed"),
}


def measure(
    overrides: list[str],
    *,
    device: str = "cuda",
    sections: str = ",".join(SECTIONS),
    limit: int = 90,
    seconds: int = 420,
) -> Iterator[Result]:
    """<section>/<figure of its bench>, <section>/wall_seconds, and <section>/failed if it was not measured to its end.

    Raises ConfigError if there is no such section or device.
    """
    names = sections.split(",")
    for name in names:
        if name not in SECTIONS:
            raise ConfigError(f"sections={sections} has {name!r}; {did_you_mean(name, SECTIONS)}.")
    if device not in ("cuda", "cpu") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"device={device} is not on this machine; device=cpu tries the same code on small shapes.")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else dict(os.environ)
    result, end = Result({"device": device, "limit": limit, "seconds": seconds}), time.monotonic() + seconds
    for name in names:
        began = time.monotonic()
        try:
            if began >= end:
                raise RunError(f"left out, since {seconds} s were over")
            command = [sys.executable, "-m", "newllm.bench.gpu", name, device]
            for line in lines_of(command, min(limit, end - began), environment):
                part = json.loads(line)
                result.metrics |= {f"{name}/{key}": value for key, value in part["metrics"].items()}
                result.tables += [(f"{name}: {title}", *table) for title, *table in part.get("tables", [])]
                result.notes += [note for note in part.get("notes", []) if note not in result.notes]
                yield result
        except RunError as error:
            result.metrics[f"{name}/failed"] = str(error)
        result.metrics[f"{name}/wall_seconds"] = time.monotonic() - began
        yield result
    result.metrics |= derived(result.metrics)
    if device == "cuda":
        result.table("Goals", ["figure", "measured", "at least"], goals(result.metrics))
    result.notes += [f"{key}: {value}" for key, value in result.metrics.items() if key.endswith("/failed")]
    yield result


def lines_of(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> Iterator[str]:
    """The lines that a command prints, as they come.

    Raises RunError if its status is not 0 or if it takes longer than `seconds`; no process of it is left then.
    """
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    lines: queue.Queue[str | None] = queue.Queue()  # None after the last

    def read() -> None:  # in a thread, since reading has no time limit
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    Thread(target=read, daemon=True).start()
    end = time.monotonic() + seconds
    try:
        while (line := lines.get(timeout=max(0.0, end - time.monotonic()))) is not None:
            yield line
        if status := process.wait(_PATIENCE):
            raise RunError(f"its process ended with status {status}")
    except (queue.Empty, subprocess.TimeoutExpired):
        raise RunError(f"ended after {seconds:.0f} s") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def derived(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures that need more than one measurement, where all are there."""
    found = {}
    for name in ("big", "tiny"):
        with suppress(KeyError):
            fastest = 1e12 * statistics.median(metrics["peak/matmul_bf16_tflops"])
            step = statistics.median(metrics[f"{name}/seconds/newllm"])
            found[f"{name}/share_of_peak"] = metrics[f"{name}/product_flops"] / step / fastest
    for name in ("alone", "shared"):
        with suppress(KeyError, ValueError):  # not measured, or a text that says why
            (wall, _), (packed, _) = (metrics[f"sharing/seconds/{way}"] for way in (name, "packed"))
            found[f"sharing/packed_over_{name}"] = wall / packed
    return found


def goals(metrics: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table of goals: figure, measured, at least."""
    cells = {figure: f"{metrics[figure]:.2f}" if figure in metrics else "not measured" for figure in GOALS}
    return [[what, cells[figure], f"{least}"] for figure, (least, what) in GOALS.items()]


# --- a section, in its own process -----------------------------------------------------------------------------------


def parts(name: str, small: bool) -> Iterator[dict[str, Any]]:
    """What a section has measured, whenever it has more: metrics, and the tables and notes of a bench."""
    measured_by, words = SECTIONS[name]
    if isinstance(measured_by, str):
        for result in bench.measured(measured_by, _words(measured_by, words, small)):
            yield {"metrics": result.metrics, "tables": result.tables, "notes": result.notes}
    else:
        for figure, value in measured_by(small):
            yield {"metrics": {figure: value}}


def _words(name: str, words: Sequence[str], small: bool) -> list[str]:
    """The words of a bench; on a CPU its small sizes take the place of those given."""
    return [*{word.partition("=")[0]: word for word in [*words, *(_SMALL[name] if small else [])]}.values()]


def _run_words(words: Sequence[str], small: bool) -> list[str]:
    """The overrides of a run, with those of `newllm bench train` where no word replaces them."""
    return bench.parse(_words("train", words, small), train_step.measure, train_step.DEFAULTS)[1]


def _seconds(call: Callable[[], object], device: torch.device, calls: int = 10) -> list[float]:
    """Seconds per call of three rounds, after two calls that are not timed: in the second a CUDA graph is recorded."""
    call = synchronized(call, device)
    call()
    return alternate({"": call}, rounds=3, calls=calls)[""]


def _step_seconds(words: list[str]) -> list[float]:
    return _seconds(newllm_step(words), Runtime().device(), calls=3)


def _tried(measure: Callable[..., Any], *arguments: Any) -> Any:
    """What `measure` returns, or the first line of the error that it raises."""
    try:
        return measure(*arguments)
    except Exception as error:
        traceback.print_exc()
        return f"failed: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"


def main(name: str, device: str) -> None:
    """Print a line of JSON for each part of a section, and nothing else: all other output goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def send() -> None:
            for part in parts(name, small=device == "cpu"):
                print(json.dumps(part), file=out, flush=True)

        if failed := _tried(send):
            print(json.dumps({"metrics": {"failed": failed.removeprefix("failed: ")}}), file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
