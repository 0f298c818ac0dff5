"""Peak memory of a training step, ours against the plain one."""

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from newllm.bench.result import Result
from newllm.run.prepare import prepare
from newllm.training.memory import peak_bytes
from newllm.training.precision import autocast
from newllm.training.step import Step

_GB = 1e9


def measure(cfg: DictConfig) -> Result:
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
    peaks = {name: peak_bytes(call, step.tensors(), p.device) for name, call in (("peak", ours), ("plain", plain))}
    ratio = peaks["plain"] / peaks["peak"]
    title = f"Peak memory of a step: {cfg.choices.model}, {size} x {cfg.data.seq_len} tokens, "
    title += f"vocabulary {p.model.vocab_size:,}, {p.precision}"
    rows = [
        ["newllm", f"{peaks['peak'] / _GB:.2f}", f"{ratio:.2f} x less"],
        ["the same model, all logits in fp32", f"{peaks['plain'] / _GB:.2f}", ""],
        ["parameters and optimizer state alone", f"{held / _GB:.2f}", ""],
    ]
    return Result(
        {
            "model": cfg.choices.model,
            "precision": p.precision,
            "device": str(p.device),
            "batch_size": size,
            "seq_len": cfg.data.seq_len,
            "memory/peak_bytes": peaks["peak"],
            "memory/plain_bytes": peaks["plain"],
            "memory/held_bytes": held,
            "ratio/memory": ratio,
        },
        [(title, ["step", "GB at its peak", "newllm"], rows)],
        [
            "Most bytes of tensors alive at one time, parameters and optimizer state among them; "
            "kernels' own scratch memory is not seen on a CPU."
        ],
    )
