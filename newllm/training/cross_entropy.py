"""Cross-entropy of a linear head that never holds the fp32 logits of a whole batch.

With a vocabulary of 50k the head is more than half of a small model's arithmetic, and the fp32 logits of a batch are by
far its largest tensor. Both losses here process rows in chunks: logits by one GEMM in the autocast dtype, the rest
(softmax, log-sum-exp, loss) in fp32. The training loss computes its gradients from the chunk's softmax in the forward
pass, as Liger and torchtitan do, so nothing of size N x V outlives its chunk.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from newllm.data.facts import IGNORED

CHUNK = 1024  # rows of one GEMM; at V = 50k a chunk's bf16 logits take 100 MB
_CPU_NUMBERS = 800 * 1024  # of an fp32 softmax, 3 MB, which stay in a CPU's cache: 16 rows at V = 50k
_CPU_WORDS = 2048  # vocabulary entries in one gradient product; all 50k at once take a quarter longer
_LOG2_E = 1 / math.log(2)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    total: float | Tensor | None = None,
    chunk: int = CHUNK,
    outermost: bool = False,
) -> Tensor:
    """Mean cross-entropy in nats (fp32, 0-d) of ``softmax(hidden @ weight.T)``.

    Shapes: hidden (N, D), weight (V, D), labels (N,). Rows labelled -100 are ignored. The sum is divided by the number
    of scored rows, or by `total` (a number of which 0 counts as 1, or a 0-d tensor above 0): with the whole batch's
    number as `total`, the losses and gradients of the pieces of a batch add up to those of the batch.

    With no scored row the loss is 0. backward() can run once. outermost: the caller promises that backward() starts at
    this loss or at a sum of such losses, so the gradients need no scaling by the incoming gradient.
    """
    if total is None:
        divisor = (labels != IGNORED).sum().clamp(min=1).float()  # stays on the device: no synchronisation
    elif isinstance(total, Tensor):
        divisor = total
    else:
        divisor = torch.full((), float(total or 1), device=labels.device)  # unlike torch.tensor, without waiting
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, divisor, chunk, outermost)
        return loss
    return token_losses(hidden, weight, labels, chunk=chunk).sum() / divisor


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Cross-entropy in nats of each row, fp32 (N,); 0 where the label is -100. No gradients."""
    dtype = _gemm_dtype(hidden, weight)
    head = weight.to(dtype)
    losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows, label, scored in _chunks(labels, chunk):
            logits = hidden[rows].to(dtype) @ head.T  # (chunk, V)
            chosen = logits.gather(1, label[:, None]).squeeze(1).float()
            lse = torch.cat([_exponentials(part)[1] for part in logits.split(_block(logits))])
            losses[rows] = (lse - chosen) * scored
    return losses


def _gemm_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _chunks(labels: Tensor, chunk: int) -> list[tuple[slice, Tensor, Tensor]]:
    """For each chunk: its rows, their labels with 0 for ignored ones, and 1.0 for each scored row."""
    scored = labels != IGNORED
    safe = labels.masked_fill(~scored, 0)
    spans = [slice(start, start + chunk) for start in range(0, len(labels), chunk)]
    return [(span, safe[span], scored[span].float()) for span in spans]


class _LinearCrossEntropy(torch.autograd.Function):
    """d loss / d logits is softmax - onehot, so the forward pass can compute the gradients from the softmax."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        divisor: Tensor,
        chunk: int,
        outermost: bool,
    ) -> Tensor:
        dtype = _gemm_dtype(hidden, weight)
        head = weight.to(dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        # Sums are fp32, whatever the dtype of the products.
        d_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
        fresh = torch.empty_like if len(labels) else torch.zeros_like
        d_weight = fresh(weight, dtype=torch.float32) if wants_weight else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        step = _CPU_WORDS if head.device.type == "cpu" else len(head)  # small enough to stay in a CPU's cache

        with torch.autocast(hidden.device.type, enabled=False):
            for rows, label, scored in _chunks(labels, chunk):
                part = hidden[rows].to(dtype)  # (chunk, D)
                logits = part @ head.T  # (chunk, V)
                loss += _to_gradient(logits, label, scored, scored / divisor)
                for start in range(0, len(head), step):
                    words = slice(start, start + step)
                    gradient = logits[:, words]
                    if d_hidden is not None:
                        d_hidden[rows] += gradient @ head[words]
                    if d_weight is None:
                        continue
                    if rows.start == 0:  # the first chunk; nothing has been added up before it
                        d_weight[words] = gradient.T @ part
                    elif gradient.dtype == d_weight.dtype:
                        d_weight[words].addmm_(gradient.T, part)
                    else:
                        d_weight[words].add_(gradient.T @ part)

        ctx.outermost = outermost
        ctx.gradients = (
            None if d_hidden is None else d_hidden.to(hidden.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
        )
        return loss / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output,) = grad_outputs
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy: backward can run only once per forward")
        # No reference is kept, so autograd can take the weight's gradient without copying it.
        gradients, ctx.gradients = ctx.gradients, None
        if not ctx.outermost:
            gradients = tuple(None if g is None else g * grad_output.to(g.dtype) for g in gradients)
        return *gradients, None, None, None, None


def _to_gradient(logits: Tensor, label: Tensor, scored: Tensor, share: Tensor) -> Tensor:
    """Turn logits (chunk, V), in place, into ``share * (softmax - onehot)``; returns their summed loss.

    Works block by block, so that a block's fp32 numbers stay in cache after the first pass.
    """
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    size = _block(logits)
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        target, weight = label[rows, None], share[rows, None]
        chosen = logits[rows].gather(1, target).squeeze(1).float()
        exponentials, lse, total = _exponentials(logits[rows], in_place=True)
        loss += ((lse - chosen) * scored[rows]).sum()
        exponentials.mul_(weight / total)
        exponentials.scatter_add_(1, target, -weight)
        if exponentials.dtype != logits.dtype:
            logits[rows] = exponentials
    return loss


def _exponentials(logits: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """``exp(logits - max)`` (rows, V), log-sum-exp (rows,) and row sums (rows, 1), all fp32.

    Uses exp2, which takes a fifth of exp's time on CPUs.
    """
    numbers = logits.to(torch.float32, copy=not in_place)
    top = numbers.amax(dim=-1, keepdim=True)
    total = torch.add(top * -_LOG2_E, numbers, alpha=_LOG2_E, out=numbers).exp2_().sum(dim=-1, keepdim=True)
    return numbers, (total.log() + top).squeeze(1), total


def _block(logits: Tensor) -> int:
    """Rows of logits (chunk, V) to work on at a time."""
    return max(1, _CPU_NUMBERS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
