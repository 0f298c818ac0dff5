"""One optimizer step: the hot path of training, alone, so that the bench times what the loop runs.

Several processes (ranks) can make one step together: each takes some rows of every piece, and torch's
DistributedDataParallel adds their gradients up, so that all ranks hold the same weights after it.
"""

import math
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from newllm.data import Rows
from newllm.model import Transformer
from newllm.training.loss import IGNORED, linear_cross_entropy
from newllm.training.optimizer import AdamW
from newllm.training.precision import Precision, autocast


def cut(rows: Rows, indices: np.ndarray, pieces: int) -> list[tuple[Tensor, Tensor]]:
    """The rows `indices` [B] of a batch in so many pieces (inputs, labels: [b, T] each), none of them empty."""
    return [rows.batch(part) for part in np.array_split(indices, pieces) if len(part)]


class BatchLoss(nn.Module):
    """Nats of a piece's scored tokens, divided by the scored tokens of the whole batch (0-d, fp32)."""

    def __init__(self, model: Transformer, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.model, self.device, self.precision = model, device, precision

    def forward(self, inputs: Tensor, labels: Tensor, scored: int) -> Tensor:
        with autocast(self.device, self.precision):
            hidden = self.model.hidden(inputs)  # [b, T, hidden]
            return linear_cross_entropy(hidden.flatten(0, 1), self.model.head_weight, labels.flatten(), total=scored)


class Step:
    """``step(pieces, rate)``: forward, backward, clipping and AdamW on a batch. Nothing in it waits for the device."""

    def __init__(self, model: Transformer, optim: AdamW, device: torch.device, precision: Precision) -> None:
        self.model, self.device = model, device
        self.loss: nn.Module = BatchLoss(model, device, precision)
        self.rank, self.ranks = 0, 1
        self.optimizer = optim.optimizer(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.clip = math.inf if optim.clip is None else optim.clip

    def distribute(self) -> None:
        """From now on share every piece with the other ranks of torch's process group; all of them call this.

        Rank 0's weights go to all. Two backward passes over a row without labels settle what DDP would otherwise
        find out in the first steps: which parameters the loss does not reach, and the order of the gradients, on
        which the last bits of their sums depend. So a resumed run has it as an uninterrupted one does.
        """
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        inputs = torch.zeros((1, self.model.seq_len), dtype=torch.int64)
        nothing = self._to_device(inputs), self._to_device(torch.full_like(inputs, IGNORED)), 1
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

    def __call__(self, pieces: list[tuple[Tensor, Tensor]], rate: float) -> tuple[Tensor, Tensor, int]:
        """Train on the pieces (inputs, labels: [b, T] each) of one batch at the learning rate `rate`.

        Every rank is given the whole batch. Returns, the first two still on the device: mean loss, norm of the
        gradient before clipping, scored tokens; all three of the whole batch.
        """
        scored = sum(int((labels != IGNORED).sum()) for _, labels in pieces)
        loss = torch.zeros((), device=self.device)
        for number, piece in enumerate(pieces, 1):
            loss += self._backward(piece, scored, last=number == len(pieces))
        if self.ranks > 1:
            dist.all_reduce(loss)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip < math.inf:
            self._clip(norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, scored

    def _backward(self, piece: tuple[Tensor, Tensor], scored: int, last: bool) -> Tensor:
        """Add this rank's part of a piece to the gradients; with the last piece they become those of all ranks."""
        inputs, labels = self._share(*piece)
        waiting = isinstance(self.loss, DistributedDataParallel) and not last
        with self.loss.no_sync() if waiting else nullcontext():  # type: ignore[operator]
            loss: Tensor = self.loss(self._to_device(inputs), self._to_device(labels), scored)
            # DDP takes the mean over the ranks, and what is wanted is the sum of their shares.
            (loss if self.ranks == 1 else loss * self.ranks).backward()
        return loss.detach()

    def _share(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's rows; where there are fewer rows than ranks, some take one without labels, to no effect."""
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

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
