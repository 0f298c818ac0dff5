"""Our training step against transformers' model of the same shape, in a process each, taking turns.

All train on the same batches of real text with AdamW (fused), clipping and a backward pass, each set up as its users
run it: newllm as `newllm train` does, transformers as a plain script. The roofline is the time of the model's matrix
products alone, forward and both backward, in that precision. A second series (names ending in /keep_memory) gives the
peers newllm's allocator setting as well, and so shows what the arithmetic alone wins.

  rounds    turns of each contestant          steps   training steps in a turn
  compiled  also under torch.compile (compilation takes minutes)
  alike     the second series as well
  memory    instead of all this: peak memory of a step, against logits of the whole batch in fp32
"""

import statistics
from functools import partial
from typing import Any

from omegaconf import DictConfig

from newllm.bench import contestants
from newllm.bench.hf_reference import peer_name
from newllm.bench.processes import Build, Processes
from newllm.bench.result import Result
from newllm.bench.timing import ratio_metrics
from newllm.build import build
from newllm.config import compose
from newllm.data import prepare
from newllm.runtime import keep_freed_memory
from newllm.training.precision import resolve

PURPOSE = "a training step against transformers, eager and compiled, and the roofline; its peak memory"
OPTIONS: dict[str, Any] = {"rounds": 7, "steps": 3, "compiled": True, "alike": True, "memory": False}
DEFAULTS = ["model=pythia_70m", "batch_size=8", "seq_len=128", "samples=256", "facts=none"]
_LABELS = {
    "newllm": "newllm",
    "newllm_compiled": "newllm, torch.compile",
    "transformers_eager": "transformers, eager",
    "transformers_compiled": "transformers, torch.compile",
    "transformers_eager_fp32": "transformers, eager, fp32",
    "matmuls": "matrix products alone",
}
_COMPILED = ["newllm_compiled", "transformers_compiled"]  # left out where there is no compiler


def measure(overrides: list[str], *, rounds: int, steps: int, compiled: bool, alike: bool, memory: bool) -> Result:
    """ratio/<contestant>: its time divided by newllm's (median), …/min, …/max; roofline/share; seconds/<contestant> of
    every round. With `memory`: memory/peak_bytes, memory/plain_bytes and ratio/memory."""
    overrides = _as_pythia(overrides)
    cfg = compose(overrides)
    if memory:
        from newllm.bench import step_memory

        return step_memory.measure(cfg)
    peer = peer_name(cfg)
    runtime = build(cfg.runtime)
    device = runtime.device()
    precision = resolve(cfg.trainer.precision, device)
    prepare(cfg.data, cfg.facts, seed=cfg.seed, runtime=runtime)  # tokenized once, before five processes want it

    result = Result(
        {
            "peer": peer,
            "model": cfg.choices.model,
            "precision": precision,
            "device": str(device),
            "threads": runtime.threads,
            "batch_size": cfg.trainer.batch_size,
            "seq_len": cfg.data.seq_len,
            "rounds": rounds,
            "steps": steps,
        },
        tables=[],
        notes=[f"Peer: {peer}. Medians of {rounds} rounds of {steps} steps (least … greatest)."],
    )
    with Processes(_contestants(overrides, precision, compiled), optional=_COMPILED) as processes:
        series = [("", "each as its users run it", processes.alternate(rounds, steps))]
        if alike and device.type == "cpu":
            processes.do(keep_freed_memory)
            series.append(("/keep_memory", "all with runtime.keep_memory", processes.alternate(rounds, steps)))
    for name, reason in processes.left_out.items():
        result.notes.append(f"{_LABELS[name]}, is left out: {reason}")
    for suffix, title, seconds in series:
        result.metrics |= _metrics(seconds, suffix)
        result.tables.append(_table(cfg, result.metrics, suffix, title))
    return result


def _as_pythia(overrides: list[str]) -> list[str]:
    """Pythia rotates a quarter of each head's dims, which is an option of newllm's encoding and not of its model."""
    given = {word.partition("=")[0] for word in overrides}
    if given & {"rotary_pct", "pos_encoding.rotary_pct", "pos_encoding"} or "model=pythia_70m" not in overrides:
        return overrides
    return [*overrides, "rotary_pct=0.25"]


def _contestants(overrides: list[str], precision: str, compiled: bool) -> dict[str, Build]:
    found: dict[str, Build] = {
        "newllm": partial(contestants.ours, overrides),
        "transformers_eager": partial(contestants.theirs, overrides),
    }
    if compiled:
        found["newllm_compiled"] = partial(contestants.ours, overrides, compiled=True)
        found["transformers_compiled"] = partial(contestants.theirs, overrides, compiled=True)
    if precision == "bf16":  # what newllm's choice of precision wins for those who would not choose it
        found["transformers_eager_fp32"] = partial(contestants.theirs, overrides, precision="fp32")
    return found | {"matmuls": partial(contestants.matmuls, overrides)}


def _metrics(seconds: dict[str, list[float]], suffix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, times in seconds.items():
        if name not in ("newllm", "matmuls"):
            found |= ratio_metrics(f"ratio/{name}{suffix}", times, seconds["newllm"])
    if all(name in seconds for name in _COMPILED):
        ours, theirs = (seconds[name] for name in _COMPILED)
        found |= ratio_metrics(f"ratio/transformers_compiled/newllm_compiled{suffix}", theirs, ours)
    found |= ratio_metrics(f"roofline/share{suffix}", seconds["matmuls"], seconds["newllm"])
    return found | {f"seconds/{name}{suffix}": times for name, times in seconds.items()}


def _table(cfg: DictConfig, metrics: dict[str, Any], suffix: str, title: str) -> tuple[str, list[str], list[list[str]]]:
    tokens = cfg.trainer.batch_size * cfg.data.seq_len
    rows = []
    for name, label in _LABELS.items():
        seconds = metrics.get(f"seconds/{name}{suffix}")
        if seconds is None:
            continue
        middle = statistics.median(seconds)
        milliseconds = f"{1e3 * middle:.1f} ({1e3 * min(seconds):.1f} … {1e3 * max(seconds):.1f})"
        faster = _spread(metrics, f"ratio/{name}{suffix}")
        if name == "matmuls":
            faster = f"{100 * metrics[f'roofline/share{suffix}']:.0f} % reached"
        rows.append([label, milliseconds, f"{tokens / middle:,.0f}", faster])
    title = (
        f"{cfg.choices.model}, {cfg.trainer.batch_size} x {cfg.data.seq_len} tokens, {metrics['precision']}, "
        f"{metrics['device']}, {metrics['threads']} threads: {title}"
    )
    return title, ["contestant", "ms a step", "tokens/s", "newllm is faster"], rows


def _spread(metrics: dict[str, Any], name: str) -> str:
    if name not in metrics:
        return ""
    return f"{metrics[name]:.2f} x ({metrics[name + '/min']:.2f} … {metrics[name + '/max']:.2f})"
