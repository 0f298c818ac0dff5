"""One optimizer step: the hot path of training, alone, so that the bench times what the loop runs.

Several processes (ranks) can make one step together: each takes some rows of every piece, and torch's
DistributedDataParallel adds their gradients up, so that all ranks hold the same weights after it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from newllm.data import Rows
from newllm.model import LanguageModel
from newllm.precision import Precision, autocast
from newllm.training.cross_entropy import IGNORED, linear_cross_entropy
from newllm.training.optimizer import AdamW

Piece = tuple[Tensor, Tensor]  # inputs and labels, [b, T] each
Numbers = tuple[Tensor, Tensor, int]  # mean loss and norm of the gradient, still on the device; scored tokens


def cut(rows: Rows, indices: np.ndarray, pieces: int) -> list[Piece]:
    """The rows `indices` [B] of a batch in `pieces` pieces (inputs, labels: [b, T] each), none of them empty."""
    return [rows.batch(part) for part in np.array_split(indices, pieces) if len(part)]


def count_scored(pieces: list[Piece]) -> int:
    """Labels of a batch that are scored, counted before it goes to the device."""
    return sum(int(np.count_nonzero(labels.numpy() != IGNORED)) for _, labels in pieces)


class BatchLoss(nn.Module):
    """Nats of a piece's scored tokens, divided by `total`, such as the scored tokens of the whole batch (0-d, fp32).

    backward() has to start at this loss. A loss that the model adds (`auxiliary`) is in the gradient, in proportion to
    the piece's share of `total`, and not in the value, which is the tokens' nats alone.

    compiled: the model's `hidden` under torch.compile, or None. fused: head and loss in one, by chunks; otherwise the
    logits of the whole piece are made.
    """

    def __init__(self, model: LanguageModel, device: torch.device, precision: Precision, fused: bool = True) -> None:
        super().__init__()
        self.model, self.device, self.precision, self.fused = model, device, precision, fused
        self.compiled: Callable[[Tensor], Tensor] | None = None

    def forward(self, inputs: Tensor, labels: Tensor, total: float) -> Tensor:
        with autocast(self.device, self.precision):
            hidden = (self.compiled or self.model.hidden)(inputs)
            return self.of(hidden, labels, total, self.model.auxiliary())

    def of(self, hidden: Tensor, labels: Tensor, total: float, auxiliary: Tensor | None = None) -> Tensor:
        """The loss of the model's `hidden` states [b, T, hidden], under the caller's autocast.

        auxiliary: [b], what the model adds to the loss for each row.
        """
        loss = self._of_tokens(hidden, labels, total)
        if auxiliary is None:
            return loss
        added = auxiliary.mean() * ((labels != IGNORED).sum() / (total or 1))
        return loss + (added - added.detach())

    def _of_tokens(self, hidden: Tensor, labels: Tensor, total: float) -> Tensor:
        if not self.fused:
            logits = F.linear(hidden, self.model.head_weight).flatten(0, 1).float()
            return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum") / (total or 1)
        return linear_cross_entropy(
            hidden.flatten(0, 1), self.model.head_weight, labels.flatten(), total=total, outermost=True
        )

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Within this block the model runs as it is, compiled or not."""
        compiled, self.compiled = self.compiled, None
        try:
            yield
        finally:
            self.compiled = compiled


class Step:
    """``step(pieces, rate)``: forward, backward, clipping and AdamW on a batch. Nothing in it waits for the device.

    fused=False takes torch's plain loss and optimizer, for comparison.
    """

    def __init__(
        self, model: LanguageModel, optim: AdamW, device: torch.device, precision: Precision, fused: bool = True
    ) -> None:
        self.model, self.device, self.precision = model, device, precision
        self.batch_loss = BatchLoss(model, device, precision, fused)
        self.loss: nn.Module = self.batch_loss  # or DDP around it
        self.rank, self.ranks = 0, 1
        self.optimizer = optim.optimizer(model, fused)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.clip = math.inf if optim.clip is None else optim.clip

    def distribute(self) -> None:
        """From now on share every piece with the other ranks of torch's process group; all of them call this.

        Rank 0's weights go to all. Two backward passes over a row without labels settle what DDP would otherwise
        learn in the first steps: which parameters the loss does not reach, and the order of the gradients, on which
        the last bits of their sums depend. So it is the same in a resumed run as in an uninterrupted one.
        """
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        inputs = torch.zeros((1, self.model.seq_len), dtype=torch.int64)
        nothing = self.to_device(inputs), self.to_device(torch.full_like(inputs, IGNORED)), 1
        self.loss(*nothing).backward()
        unreached = any(p.grad is None for p in self.parameters)
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = DistributedDataParallel(
            self.loss,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=unreached,
            gradient_as_bucket_view=True,
        )
        self.loss(*nothing).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self, pieces: list[Piece], rate: float) -> Numbers:
        """Train on the pieces of one batch at the learning rate `rate`.

        Every rank is given the whole batch. Returns, the first two still on the device: mean loss, norm of the
        gradient before clipping, scored tokens; all three of the whole batch.
        """
        scored = count_scored(pieces)
        loss = torch.zeros((), device=self.device)
        for number, piece in enumerate(pieces, 1):
            loss += self._backward(piece, scored, last=number == len(pieces))
        if self.ranks > 1:
            dist.all_reduce(loss)
            loss /= self.ranks
        return loss, self.update(rate), scored

    def update(self, rate: float) -> Tensor:
        """Clip the gradients and take a step of AdamW; returns their norm before clipping."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip < math.inf:
            self._clip(norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _backward(self, piece: Piece, scored: int, last: bool) -> Tensor:
        """Add this rank's part of a piece to the gradients; with the last piece they become those of all ranks."""
        inputs, labels = self._share(*piece)
        waiting = isinstance(self.loss, DistributedDataParallel) and not last
        with self.loss.no_sync() if waiting else nullcontext():  # type: ignore[operator]
            # DDP takes the mean over the ranks, and what is wanted is the sum of their shares.
            loss: Tensor = self.loss(self.to_device(inputs), self.to_device(labels), scored / self.ranks)
            loss.backward()
        return loss.detach()

    def _share(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's rows. With fewer rows than ranks, some take a row without labels, which has no effect."""
        if self.ranks == 1:
            return inputs, labels
        mine, wanted = inputs.tensor_split(self.ranks)[self.rank], labels.tensor_split(self.ranks)[self.rank]
        return (mine, wanted) if len(mine) else (inputs[:1], torch.full_like(labels[:1], IGNORED))

    def _clip(self, norm: Tensor) -> None:
        """Scale the gradient to the largest norm allowed; the fused optimizer does it in its own pass."""
        if self.optimizer.defaults["fused"]:
            # What torch's GradScaler sets: the kernel divides the gradients by it.
            self.optimizer.grad_scale = (norm / self.clip).clamp(min=1.0)  # type: ignore[attr-defined]
        else:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)

    def tensors(self) -> list[Tensor]:
        """What is alive between two steps: parameters, buffers and the optimizer's state."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        return [*self.parameters, *self.model.buffers(), *state]

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copies without waiting for the copy to arrive."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
