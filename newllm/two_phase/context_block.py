"""The recurrent half of the context/token model."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.attention.base import linear
from newllm.two_phase.recurrence import Recurrence


class ContextBlock(Recurrence):
    """Layers ``c^i = LN(c^{i-1} + ReLU(W_i [c^{i-1}; u] + b_i))``; the first one's c^0 is the token before's c^L.

    Every layer reads the inputs u [.., I]; contexts are [.., C]. Parameters: layers * ((C + I) C + 3 C).
    Source: github.com/rato-tokyo/new-llm at e2d7d20, src/models/layers.py and blocks.py.
    """

    def __init__(self, layers: int, width: int, inputs: int):
        super().__init__()
        self.layers, self.width, self.inputs = layers, width, inputs
        self.blocks = nn.ModuleList(ContextLayer(width, inputs) for _ in range(layers))

    def project(self, inputs: Tensor) -> Tensor:
        layers: list[Any] = list(self.blocks)
        return torch.stack([layer.of_inputs(inputs) for layer in layers], dim=-2)

    def step(self, context: Tensor, share: Tensor) -> Tensor:
        states = []
        for layer, of_inputs in zip(self.blocks, share.unbind(-2), strict=True):
            context = layer(context, of_inputs)
            states.append(context)
        return torch.stack(states, dim=-2)


class ContextLayer(nn.Module):
    """``LN(c + ReLU(W [c; u] + b))``. W is held as its two parts, W [c; u] = W_c c + W_u u; b goes with the second."""

    def __init__(self, width: int, inputs: int):
        super().__init__()
        self.of_context = linear(width, width)
        self.of_inputs = linear(inputs, width, bias=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, context: Tensor, share: Tensor) -> Tensor:
        """context [.., C]; share [.., C], what `of_inputs` makes of the inputs."""
        out: Tensor = self.norm(context + F.relu(share + self.of_context(context)))
        return out
