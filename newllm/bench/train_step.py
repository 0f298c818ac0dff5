"""Our training step against transformers' model of the same shape, in a process each, taking turns.

All train on the same batches of real text with AdamW (fused), clipping and a backward pass, each set up as its users
run it: newllm as `newllm train` does, transformers as a plain script. The roofline is the time of the model's matrix
products alone, forward and both backward, in that precision. With runtime.keep_memory=false newllm has the allocator
of its peers, which shows what the arithmetic alone wins.

  rounds    turns of each contestant          steps   training steps in a turn
  compiled  also under torch.compile (compilation takes minutes)
  memory    instead of all this: peak memory of a step, against logits of the whole batch in fp32
"""

import statistics
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from newllm.bench import train_contestants
from newllm.bench.harness import Result, Setup
from newllm.bench.hf_reference import peer_name
from newllm.bench.processes import Build, alternate_in_processes
from newllm.config import compose
from newllm.precision import autocast
from newllm.run.prepare import prepare
from newllm.training.memory import peak_bytes
from newllm.training.step import Step

DEFAULTS = ["model=pythia_70m", "batch_size=8", "seq_len=128", "samples=256", "facts=none"]
LABELS = {
    "newllm": "newllm",
    "newllm_compiled": "newllm, torch.compile",
    "transformers_eager": "transformers, eager",
    "transformers_compiled": "transformers, torch.compile",
    "transformers_eager_fp32": "transformers, eager, fp32",
    "matmuls": "matrix products alone",
}
COMPILED = ["newllm_compiled", "transformers_compiled"]  # left out on a machine without a compiler


def measure(
    overrides: list[str],
    *,
    rounds: int = 7,
    steps: int = 3,
    compiled: bool = True,
    memory: bool = False,
) -> Result:
    """ratio/<contestant>: its time divided by newllm's (median), …/min, …/max; roofline/share; seconds/<contestant> of
    every round. With `memory`: memory/peak_bytes, memory/plain_bytes and ratio/memory."""
    overrides = _as_pythia(overrides)
    if memory:
        return _step_memory(compose(overrides))
    peer = peer_name(compose(overrides))
    setup = Setup(overrides)
    setup.data()  # tokenized once, before several processes want it
    size, length = setup.cfg.trainer.batch_size, setup.cfg.data.seq_len
    sizes = {"batch_size": size, "seq_len": length, "rounds": rounds, "steps": steps}
    result = Result(
        {"peer": peer, **setup.metrics, **sizes},
        notes=[f"Peer: {peer}. Medians of {rounds} rounds of {steps} steps (least … greatest)."],
    )
    seconds, left_out = alternate_in_processes(
        _contestants(overrides, setup.precision, compiled), rounds, steps, optional=COMPILED
    )
    result.notes += [f"{LABELS[name]}, is left out: {reason}" for name, reason in left_out.items()]
    rows = []
    for name in (name for name in LABELS if name in seconds):
        times, faster = seconds[name], ""
        result.metrics[f"seconds/{name}"] = times
        if name == "matmuls":
            result.ratio("roofline/share", times, seconds["newllm"])
            faster = f"{100 * result.metrics['roofline/share']:.0f} % reached"
        elif name != "newllm":
            faster = result.ratio(f"ratio/{name}", times, seconds["newllm"])
        middle = statistics.median(times)
        milliseconds = f"{1e3 * middle:.1f} ({1e3 * min(times):.1f} … {1e3 * max(times):.1f})"
        rows.append([LABELS[name], milliseconds, f"{size * length / middle:,.0f}", faster])
    if all(name in seconds for name in COMPILED):
        ours, theirs = (seconds[name] for name in COMPILED)
        result.ratio("ratio/transformers_compiled/newllm_compiled", theirs, ours)
    title = f"{setup.cfg.choices.model}, {size} x {length} tokens, {setup.machine}: each as its users run it"
    result.table(title, ["contestant", "ms a step", "tokens/s", "newllm is faster"], rows)
    return result


def _as_pythia(overrides: list[str]) -> list[str]:
    """Pythia rotates a quarter of each head's dims, which is an option of newllm's encoding and not of its model."""
    given = {word.partition("=")[0] for word in overrides}
    if given & {"rotary_pct", "pos_encoding.rotary_pct", "pos_encoding"} or "model=pythia_70m" not in overrides:
        return overrides
    return [*overrides, "rotary_pct=0.25"]


def _contestants(overrides: list[str], precision: str, compiled: bool) -> dict[str, Build]:
    ours, theirs = partial(train_contestants.ours, overrides), partial(train_contestants.theirs, overrides)
    found: dict[str, Build] = {"newllm": ours, "transformers_eager": theirs}
    if compiled:
        found["newllm_compiled"] = partial(ours, compiled=True)
        found["transformers_compiled"] = partial(theirs, compiled=True)
    if precision == "bf16":  # what newllm's choice of precision wins for those who would not choose it
        found["transformers_eager_fp32"] = partial(theirs, precision="fp32")
    return found | {"matmuls": partial(train_contestants.matmuls, overrides)}


def _step_memory(cfg: DictConfig) -> Result:
    """memory/peak_bytes of our step, memory/plain_bytes of the same model's with ``F.cross_entropy(logits.float())``,
    ratio/memory: how many times less ours takes. Parameters, gradients and optimizer state are in all of them."""
    p = prepare(cfg)
    size = cfg.trainer.batch_size
    inputs, labels = p.data.train.batch(torch.arange(size).numpy())
    step = Step(p.model, p.optim, p.device, p.precision)
    ids, targets = inputs.to(p.device), labels.to(p.device)

    def ours() -> None:
        step([(inputs, labels)], rate=p.optim.lr)

    def plain() -> None:
        with autocast(p.device, p.precision):
            logits = p.model(ids)
        F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()
        del logits
        torch.nn.utils.clip_grad_norm_(step.parameters, step.clip)
        step.optimizer.step()
        step.optimizer.zero_grad(set_to_none=True)

    ours()  # makes the optimizer's state
    held = sum(tensor.untyped_storage().nbytes() for tensor in step.tensors())
    peak, peak_plain = (peak_bytes(call, step.tensors(), p.device) for call in (ours, plain))
    about: dict[str, Any] = {"model": cfg.choices.model, "precision": p.precision, "device": str(p.device)}
    about |= {"batch_size": size, "seq_len": cfg.data.seq_len, "ratio/memory": peak_plain / peak}
    found = {"memory/peak_bytes": peak, "memory/plain_bytes": peak_plain, "memory/held_bytes": held}
    result = Result({**about, **found})
    title = f"Peak memory of a step: {cfg.choices.model}, {size} x {cfg.data.seq_len} tokens, "
    title += f"vocabulary {p.model.vocab_size:,}, {p.precision}"
    rows = [
        ["newllm", f"{peak / 1e9:.2f}", f"{peak_plain / peak:.2f} x less"],
        ["the same model, all logits in fp32", f"{peak_plain / 1e9:.2f}", ""],
        ["parameters and optimizer state alone", f"{held / 1e9:.2f}", ""],
    ]
    result.table(title, ["step", "GB at its peak", "newllm"], rows)
    result.notes.append(
        "Most bytes of tensors alive at one time, parameters and optimizer state among them; "
        "kernels' own scratch memory is not seen on a CPU."
    )
    return result
