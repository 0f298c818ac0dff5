"""`python -m newllm.bench train`: our training step against transformers' model of the same shape.

Both train on the same batches of real text, in the same precision, with AdamW (fused), clipping and a backward pass;
each has weights and optimizer of its own and they take turns in one process. The roofline is the time of the model's
matrix products alone, forward and both backward, in that precision.

All contestants share the memory allocator, so they are measured twice: as the system has it (the headline), and with
`runtime.keep_memory`, as newllm's runs set it (names ending in /keep_memory), which helps the peer as well.
"""

import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from newllm.bench.peer import peer
from newllm.bench.timing import alternate, ratio
from newllm.build import build
from newllm.config import compose
from newllm.data import prepare
from newllm.errors import ConfigError
from newllm.model import Transformer, build_model
from newllm.results.atomic import write_text
from newllm.runtime import keep_freed_memory
from newllm.suggest import did_you_mean
from newllm.training.precision import Precision, autocast, resolve
from newllm.training.step import Step

DEFAULTS = ["model=pythia_70m", "batch_size=8", "seq_len=128", "rotary_pct=0.25", "samples=256", "facts=none"]
OPTIONS: dict[str, Any] = {"rounds": 7, "steps": 3, "compiled": True, "out": None}
USAGE = """newllm bench train [rounds=7] [steps=3] [compiled=true|false] [out=FILE.json] [key=value of a run …]

  rounds    turns of each contestant        steps   training steps in a turn
  compiled  also transformers under torch.compile (minutes of compilation)
  Defaults of the run: """ + " ".join(DEFAULTS)


def main(argv: list[str]) -> int:
    """Measure, print, and write `out`; returns the exit status."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return 0
    options, overrides = _options(argv)
    given = {word.split("=")[0] for word in overrides}
    cfg = compose([word for word in DEFAULTS if word.split("=")[0] not in given] + overrides)
    results = measure(cfg, options["rounds"], options["steps"], options["compiled"])
    _print(cfg, results)
    if options["out"]:
        write_text(Path(options["out"]), json.dumps(results, indent=2) + "\n")
        print(f"Written to {options['out']}")
    return 0


def measure(cfg: DictConfig, rounds: int, steps: int, compiled: bool) -> dict[str, Any]:
    """Flat results: ratio/<peer> (median), …/min, …/max, roofline/share, seconds/<contestant> (of every round)."""
    runtime = build({**cfg.runtime, "keep_memory": False})
    runtime.apply()
    device = runtime.device()
    precision = resolve(cfg.precision, device)
    data = prepare(cfg.data, cfg.facts, seed=cfg.seed, runtime=runtime)
    size = cfg.batch_size
    batches = [data.train.batch(np.arange(i, i + size)) for i in range(0, len(data.train) - size + 1, size)]

    ours = build_model(cfg, tokens=data.tokenizer.vocab_size).to(device)
    contestants = {"newllm": _our_step(ours, cfg, batches, device, precision)}
    name, eager = peer(cfg, ours.vocab_size)
    contestants["transformers_eager"] = _their_step(eager.to(device), eager, cfg, batches, device, precision)
    if compiled:
        _, fresh = peer(cfg, ours.vocab_size)
        module = torch.compile(fresh.to(device))
        step = _their_step(module, fresh, cfg, batches, device, precision)
        try:
            step()
            contestants["transformers_compiled"] = step
        except Exception as error:  # whatever the compiler's tool chain lacks on this machine
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"transformers under torch.compile is left out: {reason}")
    contestants["matmuls"] = _matmuls(ours, size * cfg.data.seq_len, device, precision)

    waiting = {name: _waiting(call, device) for name, call in contestants.items()}
    results: dict[str, Any] = {
        "peer": name,
        "model": cfg.choices.model,
        "precision": precision,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "batch_size": size,
        "seq_len": cfg.data.seq_len,
        "rounds": rounds,
        "steps": steps,
    }
    results |= _compare(alternate(waiting, rounds, steps), "")
    if device.type == "cpu":
        keep_freed_memory()
        results |= _compare(alternate(waiting, rounds, steps), "/keep_memory")
    return results


def _compare(seconds: dict[str, list[float]], suffix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for contestant in seconds:
        if contestant.startswith("transformers"):
            for which, value in ratio(seconds[contestant], seconds["newllm"]).items():
                found[f"ratio/{contestant}{suffix}" + ("" if which == "median" else f"/{which}")] = value
    found[f"roofline/share{suffix}"] = ratio(seconds["matmuls"], seconds["newllm"])["median"]
    return found | {f"seconds/{contestant}{suffix}": times for contestant, times in seconds.items()}


def _our_step(
    model: Transformer,
    cfg: DictConfig,
    batches: list[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: Precision,
) -> Callable[[], object]:
    optim = build(cfg.optim)
    step = Step(model, optim, device, precision)
    supply = itertools.cycle(batches)
    return lambda: step([next(supply)], rate=optim.lr)


def _their_step(
    module: Callable[..., Any],
    model: nn.Module,
    cfg: DictConfig,
    batches: list[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: Precision,
) -> Callable[[], object]:
    """A step as transformers' users write it: the model's own loss, clipping, fused AdamW."""
    optim = build(cfg.optim)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )
    supply: Iterator[tuple[Tensor, Tensor]] = itertools.cycle(batches)
    model.train()

    def step() -> None:
        ids = next(supply)[0].to(device)
        with autocast(device, precision):
            loss = module(input_ids=ids, labels=ids).loss
        loss.backward()
        if optim.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _matmuls(model: Transformer, tokens: int, device: torch.device, precision: Precision) -> Callable[[], object]:
    """All the products of a step and nothing else: ``x W^T``, ``g W``, ``g^T x`` for each linear layer and the head."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    if model.head is None:  # tied: the head is the embedding's matrix
        weights.append(model.head_weight)
    shapes = [(weight.shape[0], weight.shape[1]) for weight in weights]
    operands = {
        (rows, columns): [torch.ones(*size, dtype=dtype, device=device) for size in sizes]
        for rows, columns in set(shapes)
        for sizes in [((tokens, columns), (rows, columns), (tokens, rows))]
    }

    def run() -> None:
        for shape in shapes:
            x, weight, gradient = operands[shape]
            x @ weight.T
            gradient @ weight
            gradient.T @ x

    return run


def _waiting(call: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _options(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    options, overrides = dict(OPTIONS), []
    for word in argv:
        key, _, value = word.partition("=")
        if key not in OPTIONS:
            overrides.append(word)
        elif key == "out":
            options[key] = value
        elif key == "compiled":
            if value not in ("true", "false"):
                raise ConfigError(f"compiled must be true or false; {did_you_mean(value, ['true', 'false'])}.")
            options[key] = value == "true"
        elif not value.isdigit() or int(value) < 1:
            raise ConfigError(f"{key} must be a whole number above 0, as in {key}={OPTIONS[key]}; got {value}.")
        else:
            options[key] = int(value)
    return options, overrides


def _print(cfg: DictConfig, results: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"{results['model']}, batch {results['batch_size']} x {results['seq_len']}, {results['precision']}, "
        f"{results['device']} with {results['threads']} threads; medians of {results['rounds']} rounds"
    )
    for suffix, allocator in (("", "the system's allocator settings"), ("/keep_memory", "runtime.keep_memory=true")):
        if f"roofline/share{suffix}" in results:
            console.print(_table(results, suffix, allocator))
            share = 100 * results[f"roofline/share{suffix}"]
            console.print(f"newllm reaches {share:.0f} % of the roofline (the matrix products alone)\n")


def _table(results: dict[str, Any], suffix: str, title: str) -> Table:
    table = Table("contestant", "ms a step (min … max)", "newllm is faster by (min … max)", title=title)
    for name in ("newllm", "transformers_eager", "transformers_compiled", "matmuls"):
        seconds = results.get(f"seconds/{name}{suffix}")
        if seconds is None:
            continue
        times = f"{1e3 * statistics.median(seconds):.1f} ({1e3 * min(seconds):.1f} … {1e3 * max(seconds):.1f})"
        key, label, faster = f"ratio/{name}{suffix}", name, ""
        if key in results:
            label = f"{results['peer']}, {name.removeprefix('transformers_')}"
            faster = f"{results[key]:.2f} x ({results[key + '/min']:.2f} … {results[key + '/max']:.2f})"
        table.add_row(label, times, faster)
    return table
