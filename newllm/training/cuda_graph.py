"""A training step as a CUDA graph: all its kernels start together, where each alone takes longer to start than to run.

A graph replays recorded kernels on recorded addresses, so batch, divisor and learning rate are copied into fixed
tensors before every replay. The kernels are those of the plain step, and so are the numbers.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WARM_UPS = 2  # passes before recording, in which libraries choose their kernels and allocate workspaces

Piece = tuple[Tensor, Tensor]


class StepGraph:
    """Records `losses` (forward and backward passes over pieces on the device) and `update`; see `Step`.

    Raises RuntimeError if the model waits for the device or does anything else that cannot be recorded.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        device: torch.device,
        losses: Callable[[Sequence[Piece], Tensor], Tensor],
        update: Callable[[], Tensor],
        discard: Callable[[], None],
    ) -> None:
        self.shapes = shapes_of(pieces)
        self._pieces = [(torch.empty_like(x, device=device), torch.empty_like(y, device=device)) for x, y in pieces]
        self._divisor = torch.ones((), device=device)
        self._graph = torch.cuda.CUDAGraph()
        self._copy_in(pieces, 1.0)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        checked = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(action="ignore"):  # "a prototype feature"
            torch.cuda.set_sync_debug_mode("error")  # a recording that fails half-way leaves the device in a bad state
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    losses(self._pieces, self._divisor)
                    discard()
        finally:
            torch.cuda.set_sync_debug_mode(checked)
            torch.cuda.current_stream(device).wait_stream(stream)
        with torch.cuda.graph(self._graph):
            self._loss = losses(self._pieces, self._divisor)
            self._norm = update()

    def replay(self, pieces: Sequence[Piece], divisor: float) -> tuple[Tensor, Tensor]:
        """Loss and gradient norm of a step on these pieces, on the device."""
        self._copy_in(pieces, divisor)
        self._graph.replay()
        return self._loss.clone(), self._norm.clone()

    def _copy_in(self, pieces: Sequence[Piece], divisor: float) -> None:
        for fixed, piece in zip(self._pieces, pieces, strict=True):
            for target, tensor in zip(fixed, piece, strict=True):
                target.copy_(tensor.pin_memory(), non_blocking=True)
        self._divisor.fill_(divisor)


def shapes_of(pieces: Sequence[Piece]) -> list[torch.Size]:
    """Shapes of the pieces, which a replay must have in common with the recording."""
    return [inputs.shape for inputs, _ in pieces]
