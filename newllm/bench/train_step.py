"""A training step of newllm against one of transformers' model of the same shape. Each contestant has its own process.

All train on the same batches of real text with fused AdamW and clipping, each set up as its users run it: newllm as
`newllm train` does, transformers as a plain script. The roofline is the time of the model's matrix products alone,
forward and backward, in the same precision. With runtime.keep_memory=false newllm has the allocator of its peers,
which shows what the arithmetic alone gains.

  rounds    turns of each contestant          steps   training steps per turn
  compiled  measure torch.compile too (compilation takes minutes)
  variants  on a GPU, measure steps without a CUDA graph, and without what makes them deterministic
  memory    measure only the peak memory of a step, against logits of the whole batch in fp32
"""

import itertools
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from newllm.bench.harness import Build, Result, alternate_in_processes, setup_metrics, spread
from newllm.bench.hf_reference import peer, peer_name
from newllm.config import compose
from newllm.data import Rows
from newllm.model import LanguageModel
from newllm.precision import DTYPES, Precision, autocast
from newllm.run.prepare import prepare
from newllm.runtime import keep_freed_memory
from newllm.training.compilation import compile_if_worthwhile
from newllm.training.memory import peak_bytes
from newllm.training.step import Step

DEFAULTS = ["model=pythia_70m", "batch_size=8", "seq_len=128", "samples=256", "facts=none"]
LABELS = {
    "newllm": "newllm",
    "newllm_eager": "newllm, without CUDA graph",
    "newllm_unfilled": "newllm, new memory not filled",
    "newllm_free": "newllm, not deterministic",
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
    variants: bool = False,
    memory: bool = False,
) -> Result:
    """ratio/<contestant>: its time divided by newllm's; roofline/share; seconds/<contestant>; product_flops: the
    floating-point operations of the model's matrix products in a step.

    With `memory`: memory/peak_bytes, memory/plain_bytes, memory/held_bytes and ratio/memory.
    """
    overrides = _as_pythia(overrides)
    cfg = compose(overrides)
    if memory:
        return _step_memory(cfg)
    reference = peer_name(cfg)
    run = prepare(cfg)  # tokenizes the text once, before several processes need it
    batch, length = cfg.trainer.batch_size, cfg.data.seq_len
    setup = setup_metrics(cfg, run.precision, run.device, run.runtime)
    sizes = {"batch_size": batch, "seq_len": length, "rounds": rounds, "steps": steps}
    sizes["product_flops"] = 6 * batch * length * sum(weight.numel() for weight in _multiplied(run.model))
    result = Result({"peer": reference, **setup, **sizes})
    result.notes.append(f"Peer: {reference}. Medians of {rounds} rounds of {steps} steps (min … max).")

    # The same for all, which would see the cores busy with each other as they start.
    overrides = [*overrides, f"runtime.threads={run.runtime.threads}"]
    contestants = _contestants(overrides, run.precision, compiled)
    optional = COMPILED
    if run.device.type == "cuda":  # all are in its memory at once
        contestants.pop("transformers_eager_fp32", None)
        contestants |= _variants(overrides) if variants else {}
        optional = [name for name in contestants if name != "newllm"]
    seconds, left_out = alternate_in_processes(contestants, rounds, steps, optional)
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
        rows.append([LABELS[name], spread(times, 1e3), f"{batch * length / statistics.median(times):,.0f}", faster])
    if not {*COMPILED} - {*seconds}:
        ours, theirs = (seconds[name] for name in COMPILED)
        result.ratio("ratio/transformers_compiled/newllm_compiled", theirs, ours)
    title = f"{cfg.choices.model}, {batch} x {length} tokens, {result.setup}: each as its users run it"
    result.table(title, ["contestant", "ms a step", "tokens/s", "newllm is faster"], rows)
    return result


def _as_pythia(overrides: list[str]) -> list[str]:
    """Pythia rotates a quarter of each head's dims; in newllm this is an option of the encoding, not of the model."""
    keys = {word.partition("=")[0] for word in overrides}
    if keys & {"rotary_pct", "pos_encoding.rotary_pct", "pos_encoding"} or "model=pythia_70m" not in overrides:
        return overrides
    return [*overrides, "rotary_pct=0.25"]


def _contestants(overrides: list[str], precision: str, compiled: bool) -> dict[str, Build]:
    ours, theirs = partial(newllm_step, overrides), partial(transformers_step, overrides)
    contestants: dict[str, Build] = {"newllm": ours, "transformers_eager": theirs}
    if compiled:
        contestants["newllm_compiled"] = partial(ours, compiled=True)
        contestants["transformers_compiled"] = partial(theirs, compiled=True)
    if precision == "bf16":  # what newllm's choice of precision gains for those who would not choose it
        contestants["transformers_eager_fp32"] = partial(theirs, precision="fp32")
    return contestants | {"matmuls": partial(matrix_products, overrides)}


def _variants(overrides: list[str]) -> dict[str, Build]:
    return {
        "newllm_eager": partial(newllm_step, [*overrides, "runtime.graph=false"]),
        "newllm_unfilled": partial(newllm_step, overrides, fill=False),
        "newllm_free": partial(newllm_step, overrides, deterministic=False),
    }


# --- the contestants: each function is called in a process of its own and returns what is timed there ---------------


def newllm_step(
    overrides: list[str], compiled: bool = False, deterministic: bool = True, fill: bool = True
) -> Callable[[], object]:
    """The step of `newllm train`, plain or compiled. fill: new memory is filled, as part of determinism."""
    run = prepare(compose(overrides))
    step = Step(run.model, run.optim, run.device, run.precision)
    if run.device.type == "cuda":
        step.graph = run.runtime.graph
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
    batches = _batches(run.data.train, run.trainer.batch_size)
    reasons: list[str] = []
    if compiled and not compile_if_worthwhile(True, step, next(batches), 1, run.runtime, reasons.append):
        raise RuntimeError(*reasons)
    return synchronized(lambda: step([next(batches)], rate=run.optim.lr), run.device)


def transformers_step(
    overrides: list[str], precision: Precision | None = None, compiled: bool = False
) -> Callable[[], object]:
    """A step as users of transformers write it: the model's own loss, clipping, fused AdamW, the system's allocator.

    precision: None is the one that newllm uses.
    """
    others = [word for word in overrides if not word.startswith("runtime.keep_memory=")]
    run = prepare(compose([*others, "runtime.keep_memory=false"]))
    optim, device, precision = run.optim, run.device, precision or run.precision
    model = peer(run.cfg, run.model.vocab_size).to(device).train()
    batches = _batches(run.data.train, run.trainer.batch_size)
    torch.use_deterministic_algorithms(False)  # a choice of newllm's
    del run  # with our model
    module = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )

    def step() -> None:
        ids = next(batches)[0].to(device)
        with autocast(device, precision):
            loss = module(input_ids=ids, labels=ids).loss
        loss.backward()
        if optim.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return synchronized(step, device)


def matrix_products(overrides: list[str]) -> Callable[[], object]:
    """The roofline: ``x W^T``, ``g W``, ``g^T x`` of every linear layer and the head, and nothing else.

    Freed memory is kept, so that no page fault is timed.
    """
    run = prepare(compose(overrides))
    keep_freed_memory()
    torch.use_deterministic_algorithms(False)
    dtype = DTYPES[run.precision]
    shapes = [(weight.shape[0], weight.shape[1]) for weight in _multiplied(run.model)]  # (outputs, inputs)
    tokens = run.trainer.batch_size * run.cfg.data.seq_len
    operands = {
        (outputs, inputs): [
            torch.ones(*size, dtype=dtype, device=run.device)
            for size in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
        ]
        for outputs, inputs in set(shapes)
    }

    def products() -> None:
        for shape in shapes:
            x, weight, gradient = operands[shape]
            x @ weight.T
            gradient @ weight
            gradient.T @ x

    return synchronized(products, run.device)


def _multiplied(model: LanguageModel) -> list[Tensor]:
    """The weights [outputs, inputs] of every linear layer and the head."""
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    return weights if model.head is not None else [*weights, model.head_weight]  # tied: the embedding's matrix


def _batches(rows: Rows, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels [size, T], batch after batch, endlessly."""
    starts = range(0, len(rows) - size + 1, size)
    return itertools.cycle([rows.batch(np.arange(start, start + size)) for start in starts])


def synchronized(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`call`, and wait for the device."""

    def run() -> None:
        call()
        torch.cuda.synchronize(device)

    return run if device.type == "cuda" else call


# --- memory ---------------------------------------------------------------------------------------------------------


def _step_memory(cfg: DictConfig) -> Result:
    """memory/peak_bytes of our step, memory/plain_bytes of the same model's with ``F.cross_entropy(logits.float())``,
    ratio/memory: how many times less ours takes. Parameters, gradients and optimizer state are part of both."""
    run = prepare(cfg)
    batch = next(_batches(run.data.train, cfg.trainer.batch_size))
    step = Step(run.model, run.optim, run.device, run.precision)
    ids, labels = (tensor.to(run.device) for tensor in batch)

    def ours() -> None:
        step([batch], rate=run.optim.lr)

    def plain() -> None:
        with autocast(run.device, run.precision):
            logits = run.model(ids)
        F.cross_entropy(logits.float().flatten(0, 1), labels.flatten()).backward()
        del logits
        nn.utils.clip_grad_norm_(step.parameters, step.clip)
        step.optimizer.step()
        step.optimizer.zero_grad(set_to_none=True)

    ours()  # creates the optimizer's state
    held = sum(tensor.untyped_storage().nbytes() for tensor in step.tensors())
    peak, plain_peak = (peak_bytes(call, step.tensors(), run.device) for call in (ours, plain))
    size, length = cfg.trainer.batch_size, cfg.data.seq_len
    metrics = {
        **setup_metrics(cfg, run.precision, run.device, run.runtime), "batch_size": size, "seq_len": length,
        "memory/peak_bytes": peak, "memory/plain_bytes": plain_peak, "memory/held_bytes": held,
        "ratio/memory": plain_peak / peak,
    }  # fmt: skip
    result = Result(metrics)
    shape = f"{cfg.choices.model}, {size} x {length} tokens, vocabulary {run.model.vocab_size:,}, {run.precision}"
    rows = [
        ["newllm", f"{peak / 1e9:.2f}", f"{plain_peak / peak:.2f} x less"],
        ["the same model, all logits in fp32", f"{plain_peak / 1e9:.2f}", ""],
        ["parameters and optimizer state alone", f"{held / 1e9:.2f}", ""],
    ]
    result.table(f"Peak memory of a step: {shape}", ["step", "GB at its peak", "newllm"], rows)
    result.notes.append(
        "Largest number of bytes of tensors alive at once, parameters and optimizer state included; on a CPU the "
        "scratch memory of kernels is not counted."
    )
    return result
