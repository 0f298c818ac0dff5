"""Initial weights."""

import torch
from torch import nn

from newllm.position.encoding import PositionEncoding
from newllm.seeding import stream


@torch.no_grad()
def init_weights(model: nn.Module, seed: int, std: float, bias_std: float = 0.0) -> None:
    """Draw matrices and embeddings from N(0, std^2), biases of linear layers from N(0, bias_std^2).

    Norms keep their ones and zeros; position encodings choose their own initial values (`PositionEncoding.initial`).
    Each parameter has its own random stream, seeded by its name, so that two models which differ in one part (say the
    encoding) start with equal weights everywhere else.
    """
    for path, module in model.named_modules():
        encoding = module if isinstance(module, PositionEncoding) else None
        buffers = encoding.named_buffers(recurse=False) if encoding else ()
        for own_name, tensor in (*module.named_parameters(recurse=False), *buffers):
            if tensor.is_meta:
                continue
            name = f"{path}.{own_name}" if path else own_name
            generator = torch.Generator().manual_seed(stream(seed, "init", name))
            initial = encoding.initial(own_name, tensor.shape, generator) if encoding else None
            if initial is not None:
                tensor.copy_(initial)
            elif not isinstance(tensor, nn.Parameter):
                continue
            elif tensor.dim() >= 2:
                tensor.copy_(torch.empty(tensor.shape).normal_(0.0, std, generator=generator))
            elif own_name.endswith("bias"):
                if isinstance(module, nn.Linear) and bias_std:
                    tensor.copy_(torch.empty(tensor.shape).normal_(0.0, bias_std, generator=generator))
                else:
                    tensor.zero_()
