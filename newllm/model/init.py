"""Initial weights."""

import torch
from torch import nn

from newllm.seeding import stream


@torch.no_grad()
def init_weights(model: nn.Module, seed: int, std: float) -> None:
    """Matrices and embeddings N(0, std^2), biases 0; norms keep their ones.

    Each parameter draws from a stream of its own name, so that models which differ in one part (another encoding,
    another attention) start equal in all others.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.dim() >= 2:
            generator = torch.Generator().manual_seed(stream(seed, "init", name))
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
        elif name.endswith("bias"):
            parameter.zero_()
