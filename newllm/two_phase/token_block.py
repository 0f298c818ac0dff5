"""The half of the context/token model that reads contexts and predicts."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.attention.base import linear


class TokenBlock(nn.Module):
    """Layers ``h^i = LN(P_i h^{i-1} + ReLU(W_i [c^i; h^{i-1}] + b_i))``, where h^0 is the window of inputs.

    Layer i reads the context of context layer i and nothing of other tokens. Widths go from n E (n tokens in a window)
    to E in even steps, ``d_i = n E - floor((n - 1) E i / L)``. A layer from a to b wide has (C + a) b + 3 b parameters,
    and a b + b more for P_i, which is there only where a and b differ.
    Source: github.com/rato-tokyo/new-llm at e2d7d20, src/models/layers.py and blocks.py.
    """

    def __init__(self, layers: int, context_dim: int, embed_dim: int, num_input_tokens: int):
        super().__init__()
        window = num_input_tokens * embed_dim
        widths = [window - (window - embed_dim) * i // layers for i in range(layers + 1)]
        self.blocks = nn.ModuleList(TokenLayer(context_dim, wide, narrow) for wide, narrow in pairwise(widths))

    def forward(self, contexts: Tensor, windows: Tensor) -> Tensor:
        """contexts [.., L, C] and windows [.., n E] -> states [.., E]."""
        x = windows
        for layer, context in zip(self.blocks, contexts.unbind(-2), strict=True):
            x = layer(x, context)
        return x


class TokenLayer(nn.Module):
    """``LN(P h + ReLU(W [c; h] + b))``: h [.., wide] and c [.., C] -> [.., narrow]."""

    def __init__(self, context_dim: int, wide: int, narrow: int):
        super().__init__()
        self.linear = linear(context_dim + wide, narrow, bias=True)
        self.shortcut = nn.Identity() if wide == narrow else linear(wide, narrow, bias=True)
        self.norm = nn.LayerNorm(narrow)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        added = F.relu(self.linear(torch.cat((context, x), dim=-1)))
        out: Tensor = self.norm(self.shortcut(x) + added)
        return out
