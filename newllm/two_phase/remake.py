"""The true contexts of a text, made again from a trained recurrence: the same bits that a first phase has stored."""

from typing import Any

import numpy as np
import torch

from newllm.training.precision import Precision
from newllm.two_phase.passes import Text, true_contexts


def remake(model: Any, tokens: np.ndarray, device: torch.device, precision: Precision) -> np.ndarray:
    """Contexts [N, L, C] of tokens [N] by the recurrence of `model` from zeros, in memory.

    fp32, or bf16 as uint16, as newllm.two_phase.contexts has them on disk.
    """
    recurrence = model.recurrence
    shape = (len(tokens), recurrence.layers, recurrence.width)
    contexts = torch.empty(shape, dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    for (start, stop), piece in true_contexts(recurrence, Text(model, tokens, device), precision):
        contexts[start:stop] = piece
    return (contexts if precision == "fp32" else contexts.view(torch.uint16)).numpy()
