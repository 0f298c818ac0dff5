"""Cast a model's weights once for many forward passes in bf16 or fp16."""

import copy

import torch
from torch import nn

from newllm.model.language_model import LanguageModel


def cast_products(model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """A copy of the model with its linear layers and head in `dtype`; all other tensors are shared with `model`.

    Autocast casts weights at every use; casting them once gives the same numbers faster.
    """
    copied: dict[int, object] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            copied |= {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in layer.parameters()}
    cast = copy.deepcopy(model, copied)
    if cast.head is None:  # tied: the embedding keeps its dtype for lookups
        cast.head = nn.Linear(model.hidden_size, model.vocab_size, bias=False, device="meta")
        cast.head.weight = nn.Parameter(model.embed.weight.detach().to(dtype), requires_grad=False)
    return cast
