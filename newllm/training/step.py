"""One optimizer step, the hot path of training, in a module of its own so that the bench times what the loop runs.

Several processes (ranks) can make one step together: each takes some rows of every piece, and torch's
DistributedDataParallel sums their gradients, so that all ranks have the same weights afterwards.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from newllm.data import Rows
from newllm.data.facts import IGNORED
from newllm.errors import RunError
from newllm.model import LanguageModel
from newllm.precision import Precision, autocast
from newllm.training.cross_entropy import linear_cross_entropy
from newllm.training.cuda_graph import Piece, StepGraph, shapes_of
from newllm.training.memory import told_if_too_little
from newllm.training.optimizer import AdamW

Numbers = tuple[Tensor, Tensor, int]  # mean loss and gradient norm, on the device; number of scored tokens


def cut(rows: Rows, indices: np.ndarray, pieces: int) -> list[Piece]:
    """Cut the rows `indices` [B] of a batch into `pieces` non-empty pieces (inputs, labels: [b, T] each)."""
    return [rows.batch(part) for part in np.array_split(indices, pieces) if len(part)]


def read_and_clear(steps: list[Numbers]) -> list[tuple[float, float, int]]:
    """The numbers of these steps, in order, as Python numbers; empties the list. Waits for the device, once for all."""
    if not steps:
        return []
    losses, norms, scored = zip(*steps, strict=True)
    steps.clear()
    return list(zip(torch.stack(losses).tolist(), torch.stack(norms).tolist(), scored, strict=True))


def count_scored(pieces: list[Piece]) -> int:
    """Number of scored labels of a batch, counted on the CPU."""
    return sum(int(np.count_nonzero(labels.numpy() != IGNORED)) for _, labels in pieces)


class BatchLoss(nn.Module):
    """Nats of a piece's scored tokens, divided by `total`, such as the scored tokens of the whole batch (0-d, fp32).

    `total` is above 0, a number or a tensor (0-d), which is not read back from the device.

    backward() has to start at this loss. An auxiliary loss of the model is part of the gradient, in proportion to the
    piece's share of `total`, but not of the value, which contains only the tokens' nats.

    compiled: the model's `hidden` under torch.compile, or None. fused: compute head and loss together, in chunks;
    otherwise the logits of the whole piece are computed first.
    """

    def __init__(self, model: LanguageModel, device: torch.device, precision: Precision, fused: bool = True) -> None:
        super().__init__()
        self.model, self.device, self.precision, self.fused = model, device, precision, fused
        self.compiled: Callable[[Tensor], Tensor] | None = None

    def forward(self, inputs: Tensor, labels: Tensor, total: float | Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            hidden = (self.compiled or self.model.hidden)(inputs)
            return self.of(hidden, labels, total, self.model.auxiliary())

    def of(self, hidden: Tensor, labels: Tensor, total: float | Tensor, auxiliary: Tensor | None = None) -> Tensor:
        """The loss from the model's `hidden` states [b, T, hidden], under the caller's autocast.

        auxiliary: [b], the model's auxiliary loss of each row.
        """
        head = self.model.head_weight
        if self.fused:
            hidden = hidden.flatten(0, 1)
            loss = linear_cross_entropy(hidden, head, labels.flatten(), total=total, outermost=True)
        else:
            logits = F.linear(hidden, head).flatten(0, 1).float()
            loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum") / total
        if auxiliary is None:
            return loss
        added = auxiliary.mean() * ((labels != IGNORED).sum() / total)
        return loss + (added - added.detach())


class Step:
    """``step(pieces, rate)``: forward, backward, clipping and AdamW on a batch, without waiting for the device.

    fused=False uses torch's plain loss and optimizer, for comparison. With `graph`, steps on one CUDA device become a
    CUDA graph once two in a row have had the same shapes; with "auto" unless that fails, otherwise RunError is raised.
    """

    def __init__(
        self, model: LanguageModel, optim: AdamW, device: torch.device, precision: Precision, fused: bool = True
    ) -> None:
        self.model, self.device, self.precision = model, device, precision
        self.batch_loss = BatchLoss(model, device, precision, fused)
        self.loss: nn.Module = self.batch_loss  # or DDP around it
        self.rank, self.ranks = 0, 1
        self.optimizer = optim.optimizer(model, fused, precision)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.clip = math.inf if optim.clip is None else optim.clip
        self.scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
        self._one = torch.ones((), device=device)  # times the scale is the scale
        self.graph: bool | Literal["auto"] = False
        self.say: Callable[[str], None] = print  # takes the line about a step that cannot be recorded
        self._recorded: StepGraph | None = None
        self._shapes: list[torch.Size] = []  # of the last step
        if device.type == "cuda":  # a tensor, so that a graph can read another rate at each replay
            for group in self.optimizer.param_groups:
                group["lr"], group["capturable"] = torch.zeros((), device=device), True

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Neither compiled code nor a graph within this block."""
        before = self.batch_loss.compiled, self.graph
        self.batch_loss.compiled, self.graph = None, False
        try:
            yield
        finally:
            self.batch_loss.compiled, self.graph = before

    def distribute(self) -> None:
        """Share every piece with the other ranks of torch's process group from now on. Every rank calls this.

        All ranks get rank 0's weights. Two backward passes over a row without labels fix what DDP would otherwise learn
        in the first steps: which parameters the loss does not reach, and the order of the gradients, on which the last
        bits of their sums depend. So both are the same in a resumed run as in an uninterrupted one.
        """
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        inputs = torch.zeros((1, self.model.seq_len), dtype=torch.int64)
        unlabelled = self.to_device(inputs), self.to_device(torch.full_like(inputs, IGNORED)), 1
        self.loss(*unlabelled).backward()
        unreached = any(p.grad is None for p in self.parameters)
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = DistributedDataParallel(
            self.loss,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=unreached,
            gradient_as_bucket_view=True,
        )
        self.loss(*unlabelled).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self, pieces: list[Piece], rate: float) -> Numbers:
        """Train on the pieces of one batch at the learning rate `rate`.

        Every rank gets the whole batch. Returns the mean loss, the gradient norm before clipping (both still on the
        device) and the number of scored tokens, all of the whole batch. Raises RunError if memory runs out.
        """
        with told_if_too_little(pieces, self.model, self.device):
            return self._make(pieces, rate)

    def _make(self, pieces: list[Piece], rate: float) -> Numbers:
        scored = count_scored(pieces)
        if self.graph and (recorded := self._graph_of(pieces)):
            self.set_rate(rate)
            return *recorded.replay(pieces, scored or 1), scored
        total = torch.zeros((), device=self.device)
        for number, (inputs, labels) in enumerate(pieces, 1):
            if self.ranks > 1:
                own_inputs, own_labels = (part.tensor_split(self.ranks)[self.rank] for part in (inputs, labels))
                if len(own_inputs):
                    inputs, labels = own_inputs, own_labels
                else:  # no row is left for this rank: one without labels has no effect
                    inputs, labels = inputs[:1], torch.full_like(labels[:1], IGNORED)
            skip_sync = self.ranks > 1 and number < len(pieces)  # the last piece synchronizes the gradients
            with self.loss.no_sync() if skip_sync else nullcontext():  # type: ignore[operator]
                # DDP averages over ranks; dividing the total by `ranks` makes that a sum.
                divisor = self._scaled((scored or 1) / self.ranks)
                loss = self.loss(self.to_device(inputs), self.to_device(labels), divisor)
                loss.backward()
            total += loss.detach()
        total = self._unscaled(total)
        if self.ranks > 1:
            dist.all_reduce(total)
            total /= self.ranks
        return total, self.update(rate), scored

    def _graph_of(self, pieces: Sequence[Piece]) -> StepGraph | None:
        """The graph of a step on such pieces; None as long as there is none."""
        shapes, before = shapes_of(pieces), self._shapes
        self._shapes = shapes
        if self._recorded is None and shapes == before and self.optimizer.state:
            discard = partial(self.optimizer.zero_grad, set_to_none=True)
            try:
                self._recorded = StepGraph(pieces, self.device, self._losses, self._apply_gradients, discard)
            except RuntimeError as error:
                discard()
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                if self.graph != "auto":
                    raise RunError(
                        f"runtime.graph=true: the step cannot be a CUDA graph ({reason}); runtime.graph=auto goes on "
                        "without one"
                    ) from error
                self.graph = False
                self.say(f"The step cannot be a CUDA graph, so its kernels start one by one: {reason}")
        return self._recorded if self._recorded and self._recorded.shapes == shapes else None

    def _losses(self, pieces: Sequence[Piece], scored: Tensor) -> Tensor:
        """The loss of a batch on the device; its gradients are in the parameters afterwards."""
        total = torch.zeros((), device=self.device)
        for inputs, labels in pieces:
            loss = self.loss(inputs, labels, self._scaled(scored))
            loss.backward()
            total += loss.detach()
        return self._unscaled(total)

    def _scaled(self, divisor: Any) -> Any:
        """A loss's divisor that scales its gradient for fp16, where the smallest would vanish.

        The scale has to be in the divisor, since the head's gradients are rounded in the forward pass.
        """
        return divisor if self.scaler is None else divisor / self.scaler.scale(self._one)

    def _unscaled(self, value: Tensor) -> Tensor:
        return value if self.scaler is None else value / self.scaler.scale(self._one)

    def restore_scale(self, state: dict[str, Any] | None) -> None:
        """Go on with the scale of a checkpoint's fp16 gradients."""
        if self.scaler is not None and state is not None:
            self.scaler.load_state_dict(state)

    def update(self, rate: float) -> Tensor:
        """Clip the gradients and make a step of AdamW; returns the gradient norm before clipping."""
        self.set_rate(rate)
        return self._apply_gradients()

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * group["rate_factor"])
            else:
                group["lr"] = rate * group["rate_factor"]

    def _apply_gradients(self) -> Tensor:
        norm = self._unscaled(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        if self.clip < math.inf and self.optimizer.defaults["fused"]:
            # The attribute that torch's GradScaler sets: the kernel divides the gradients by it, in its own pass.
            self.optimizer.grad_scale = (norm / self.clip).clamp(min=1.0)  # type: ignore[attr-defined]
        elif self.clip < math.inf:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        if self.scaler is None:
            self.optimizer.step()
        else:  # multiplies grad_scale by its own; the kernel, on the device, skips a step with a gradient not finite
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> list[Tensor]:
        """The tensors alive between two steps: parameters, buffers and the optimizer's state."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        return [*self.parameters, *self.model.buffers(), *state]

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copy to the device, without waiting on CUDA."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
