"""One step of several runs: forward and backward passes together, clipping and AdamW each by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm.errors import ConfigError
from newllm.pack.packed_encoding import Rows
from newllm.pack.stacked_model import stack
from newllm.precision import autocast
from newllm.training.step import Numbers, Piece, Step, count_scored

# Largest difference of a packed loss from the run's own that counts as rounding, in nats.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


@dataclass(frozen=True)
class StepRequest:
    """A step that a training loop asks for."""

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
        if len(requests) == 1 or len({_shapes(one) for one in requests}) > 1:
            return [one.alone() for one in requests]
        steps = [one.step for one in requests]
        if self._steps != steps:
            self._take(steps, [one.pieces[0] for one in requests])
        device = steps[0].device
        scored = [count_scored(one.pieces) for one in requests]
        losses = torch.zeros(len(requests), device=device)
        for pieces in zip(*(one.pieces for one in requests), strict=True):
            parts = self._losses(pieces, scored)
            torch.autograd.backward(parts)
            losses += torch.stack(parts).detach()
        norms = [one.step.update(one.rate) for one in requests]
        return list(zip(losses.unbind(), norms, scored, strict=True))

    def _take(self, steps: list[Step], pieces: list[tuple[Tensor, Tensor]]) -> None:
        """These runs from now on. What their models do to a row must not depend on the other rows: a look tells."""
        self._stack = stack([step.model for step in steps], self._rows)
        self._steps = steps
        scored = [count_scored([piece]) for piece in pieces]
        with torch.no_grad():
            together = self._losses(pieces, scored)
            for step, piece, number, packed in zip(steps, pieces, scored, together, strict=True):
                own = step.loss(step.to_device(piece[0]), step.to_device(piece[1]), number)
                if abs(own.item() - packed.item()) > TOLERANCE[step.precision]:
                    raise ConfigError(
                        f"the models can't be packed: a loss would be {packed.item():.6g} instead of {own.item():.6g}, "
                        "so a part of them mixes the rows of a batch; leave pack out"
                    )

    def _losses(self, pieces: Sequence[tuple[Tensor, Tensor]], scored: list[int]) -> list[Tensor]:
        """What `BatchLoss` is of each run's piece."""
        first = self._steps[0]
        self._rows.each = len(pieces[0][0])
        inputs = first.to_device(torch.cat([inputs for inputs, _ in pieces]))
        labels = first.to_device(torch.cat([labels for _, labels in pieces]))
        with autocast(first.device, first.precision):
            hidden = self._stack.hidden(inputs)  # [K * B, T, hidden]
            auxiliary = self._stack.auxiliary()  # [K * B]
            runs = len(pieces)
            added = [None] * runs if auxiliary is None else auxiliary.chunk(runs)
            parts = zip(self._steps, hidden.chunk(runs), labels.chunk(runs), scored, added, strict=True)
            return [step.batch_loss.of(states, wanted, number, more) for step, states, wanted, number, more in parts]


def _shapes(request: StepRequest) -> tuple[torch.Size, ...]:
    return tuple(inputs.shape for inputs, _ in request.pieces)
