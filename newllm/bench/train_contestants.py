"""What `newllm bench train` times: a training step of ours, of transformers, and its matrix products alone.

Each function composes the run's configuration in the process it is called in, and returns one step. All train on the
same batches of text, with clipping and fused AdamW.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from newllm.bench.harness import Setup
from newllm.bench.hf_reference import peer
from newllm.build import build
from newllm.config import compose
from newllm.data import Dataset, Rows
from newllm.model import LanguageModel, build_model
from newllm.precision import Precision, autocast
from newllm.run.prepare import prepare
from newllm.runtime import keep_freed_memory
from newllm.training.compilation import compile_if_worthwhile
from newllm.training.step import Step


def ours(overrides: list[str], compiled: bool = False) -> Callable[[], object]:
    """The step of `newllm train`, prepared as that prepares it; the model as it is, or compiled."""
    cfg = compose(overrides)
    p = prepare(cfg)
    step = Step(p.model, p.optim, p.device, p.precision)
    supply = _batches(p.data.train, cfg.trainer.batch_size)
    reasons: list[str] = []
    if compiled and not compile_if_worthwhile(True, step, next(supply), 1, p.runtime, reasons.append):
        raise RuntimeError(*reasons)
    return _waiting(lambda: step([next(supply)], rate=p.optim.lr), p.device)


def theirs(overrides: list[str], precision: Precision | None = None, compiled: bool = False) -> Callable[[], object]:
    """A step as transformers' users write it: the model's own loss, clipping, fused AdamW.

    precision: None is the one that newllm takes. The allocator is as the system has it.
    """
    others = [word for word in overrides if not word.startswith("runtime.keep_memory=")]
    setup = Setup([*others, "runtime.keep_memory=false"])
    data, device, precision = setup.data(), setup.device, precision or setup.precision
    model = peer(setup.cfg, _shape(setup, data).vocab_size).to(device).train()
    module = torch.compile(model) if compiled else model
    optim = build(setup.cfg.optim)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )
    supply = _batches(data.train, setup.cfg.trainer.batch_size)

    def step() -> None:
        ids = next(supply)[0].to(device)
        with autocast(device, precision):
            loss = module(input_ids=ids, labels=ids).loss
        loss.backward()
        if optim.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _waiting(step, device)


def matmuls(overrides: list[str]) -> Callable[[], object]:
    """The roofline: ``x W^T``, ``g W``, ``g^T x`` of every linear layer and the head, and nothing else.

    Freed memory is kept, so that no page fault is timed.
    """
    setup = Setup(overrides)
    keep_freed_memory()
    dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32
    model = _shape(setup, setup.data())
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    if model.head is None:  # tied: the head is the embedding's matrix
        weights.append(model.head_weight)
    shapes = [(weight.shape[0], weight.shape[1]) for weight in weights]  # (outputs, inputs)
    tokens = setup.cfg.trainer.batch_size * setup.cfg.data.seq_len
    operands = {
        (rows, columns): [torch.ones(*size, dtype=dtype, device=setup.device) for size in sizes]
        for rows, columns in set(shapes)
        for sizes in [((tokens, columns), (rows, columns), (tokens, rows))]
    }

    def run() -> None:
        for shape in shapes:
            x, weight, gradient = operands[shape]
            x @ weight.T
            gradient @ weight
            gradient.T @ x

    return _waiting(run, setup.device)


def _shape(setup: Setup, data: Dataset) -> LanguageModel:
    """Our model without numbers."""
    with torch.device("meta"):
        return build_model(setup.cfg, tokens=data.tokenizer.vocab_size)


def _batches(rows: Rows, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels [size, T], batch after batch, again and again."""
    starts = range(0, len(rows) - size + 1, size)
    return itertools.cycle([rows.batch(np.arange(start, start + size)) for start in starts])


def _waiting(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`call`, which then waits for the device."""

    def run() -> None:
        call()
        torch.cuda.synchronize(device)

    return run if device.type == "cuda" else call
