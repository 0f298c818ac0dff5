"""One step of several runs: forward and backward passes together, clipping and AdamW separately."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm.errors import ConfigError
from newllm.pack.packed_encoding import Rows
from newllm.pack.stacked_model import stack
from newllm.precision import autocast
from newllm.training.memory import told_if_too_little
from newllm.training.step import Numbers, Piece, Step, count_scored

# Largest difference between a packed loss and the run's own that counts as rounding, in nats.
_TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 2e-2}


@dataclass(frozen=True)
class StepRequest:
    """A step that the training loop of a run asks for."""

    step: Step
    pieces: list[Piece]
    rate: float

    def alone(self) -> Numbers:
        return self.step(self.pieces, self.rate)


class PackedStep:
    """``packed(requests)`` makes the steps that several training loops ask for; returns the numbers of each.

    The runs may change from call to call. Steps on batches of different shapes are made one by one.
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._rows = Rows()

    def __call__(self, requests: Sequence[StepRequest]) -> list[Numbers]:
        shapes = {tuple(inputs.shape for inputs, _ in request.pieces) for request in requests}
        if len(requests) == 1 or len(shapes) > 1:
            return [request.alone() for request in requests]
        steps = [request.step for request in requests]
        with told_if_too_little(requests[0].pieces, steps[0].model, steps[0].device, len(steps)):
            if self._steps != steps:
                self._stack = stack([step.model for step in steps], self._rows)
                self._steps = steps
                self._check_losses([request.pieces[0] for request in requests])
            return self._make(requests)

    def _make(self, requests: Sequence[StepRequest]) -> list[Numbers]:
        scored = [count_scored(request.pieces) for request in requests]
        losses = torch.zeros(len(requests), device=self._steps[0].device)
        for pieces in zip(*(request.pieces for request in requests), strict=True):
            parts = self._losses(pieces, [number or 1 for number in scored])
            torch.autograd.backward(parts)
            losses += torch.stack(parts).detach()
        norms = [request.step.update(request.rate) for request in requests]
        return list(zip(losses.unbind(), norms, scored, strict=True))

    def _check_losses(self, pieces: Sequence[Piece]) -> None:
        """Raises ConfigError if a packed loss differs from the run's own: then the model mixes the rows of a batch."""
        scored = [count_scored([piece]) or 1 for piece in pieces]
        with torch.no_grad():
            packed = self._losses(pieces, scored)
            for step, piece, number, loss in zip(self._steps, pieces, scored, packed, strict=True):
                own = step.loss(step.to_device(piece[0]), step.to_device(piece[1]), number)
                if abs(own.item() - loss.item()) > _TOLERANCE[step.precision]:
                    raise ConfigError(
                        f"the models can't be packed: a loss would be {loss.item():.6g} instead of {own.item():.6g}, "
                        "so a part of them mixes the rows of a batch; leave pack out"
                    )

    def _losses(self, pieces: Sequence[Piece], scored: list[int]) -> list[Tensor]:
        """The `BatchLoss` of each run on its piece."""
        first, runs = self._steps[0], len(pieces)
        self._rows.each = len(pieces[0][0])
        inputs = first.to_device(torch.cat([inputs for inputs, _ in pieces]))
        labels = first.to_device(torch.cat([labels for _, labels in pieces]))
        with autocast(first.device, first.precision):
            hidden = self._stack.hidden(inputs)  # [K * B, T, hidden]
            auxiliary = self._stack.auxiliary()  # [K * B]
            added = [None] * runs if auxiliary is None else auxiliary.chunk(runs)
            parts = zip(self._steps, hidden.chunk(runs), labels.chunk(runs), scored, added, strict=True)
            return [step.batch_loss.of(states, targets, total, more) for step, states, targets, total, more in parts]
