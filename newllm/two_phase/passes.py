"""Passes of a recurrence over a text: all tokens at once from given contexts, or truly one after another."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from newllm.training.precision import Precision, autocast
from newllm.two_phase.recurrence import Recurrence, sequential

Piece = tuple[tuple[int, int], Tensor]  # (start, stop) and the contexts [stop - start, L, C] of these tokens


class Text:
    """A text as a model's recurrence reads it.

    tokens: ids [N], memory-mapped or not. Calling it with (start, stop) gives u_start … u_stop-1, [stop - start, I].
    """

    def __init__(self, model: Any, tokens: np.ndarray, device: torch.device) -> None:
        self.model, self.tokens, self.device = model, tokens, device
        self._before = int(getattr(model, "num_input_tokens", 1)) - 1  # tokens that an input reaches back

    def __len__(self) -> int:
        return len(self.tokens)

    @torch.no_grad()
    def __call__(self, start: int, stop: int) -> Tensor:
        first = max(0, start - self._before)
        ids = torch.from_numpy(self.tokens[first:stop].astype(np.int64)).to(self.device)
        inputs: Tensor = self.model.recurrent_inputs(ids)
        return inputs[start - first :]

    def pieces(self, size: int) -> list[tuple[int, int]]:
        """(start, stop) of consecutive portions of `size` tokens; the last may be shorter."""
        return [(start, min(start + size, len(self))) for start in range(0, len(self), size)]


def shifted(previous: np.ndarray, start: int, stop: int, first: np.ndarray) -> np.ndarray:
    """The contexts [stop - start, C] that the tokens start … stop-1 begin from: those of the tokens before them.

    first: [C], what the text's first token begins from.
    """
    if start:
        return np.array(previous[start - 1 : stop - 1])
    return np.concatenate([first[None], previous[: stop - 1]])


def parallel_contexts(
    recurrence: Recurrence, text: Text, previous: np.ndarray, size: int, precision: Precision
) -> Iterator[Piece]:
    """All layers' contexts, `size` tokens at a time, each token beginning from its predecessor's in `previous` [N, C],
    the first one from zeros."""
    zeros = np.zeros(previous.shape[1], np.float32)
    for start, stop in text.pieces(size):
        context = torch.from_numpy(shifted(previous, start, stop, zeros)).to(text.device)
        with torch.no_grad(), autocast(text.device, precision):
            states = recurrence(context, text(start, stop))
        yield (start, stop), states


def true_contexts(recurrence: Recurrence, text: Text, precision: Precision) -> Iterator[Piece]:
    """All layers' contexts of the recurrence from zeros, token after token; pieces as `sequential` gives them."""
    pieces = sequential(recurrence, text, len(text), torch.zeros(recurrence.width, device=text.device))
    while True:
        with autocast(text.device, precision):  # which would otherwise hold for whoever takes the pieces, too
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece
