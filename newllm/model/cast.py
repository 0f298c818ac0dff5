"""Weights in the dtype of the arithmetic, cast once."""

import copy

import torch
from torch import nn

from newllm.model.language_model import LanguageModel


def cast_products(model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """The model with the parameters of its linear layers, and the head, in `dtype`; all else is shared with `model`.

    For many small forward passes under autocast, which casts weights at every use: the numbers are the same.
    """
    known: dict[int, object] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            known |= {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in layer.parameters()}
    cast = copy.deepcopy(model, known)
    if cast.head is None:  # tied: the embedding itself stays as it is
        cast.head = nn.Linear(model.hidden_size, model.vocab_size, bias=False, device="meta")
        cast.head.weight = nn.Parameter(model.embed.weight.detach().to(dtype), requires_grad=False)
    return cast
