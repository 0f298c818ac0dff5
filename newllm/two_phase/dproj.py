"""A transformer on a recurrent projection (DProj), which turns wide embeddings into narrow states."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.attention.cache import Cache
from newllm.attention.layer import linear
from newllm.checks import MOST_WIDTH, at_least, within
from newllm.model.init import init_weights
from newllm.model.transformer import Transformer
from newllm.two_phase.recurrence import Recurrence, scan


class DProj(Recurrence):
    """One layer ``p' = LN(p + gelu(W [p; e] + b))``: states p [C], inputs e [I], exact (erf) GELU.

    W is stored in two parts, W [p; e] + b = W_p p + (W_e e + b). Parameters: (C + I) C + 3 C.
    Source: github.com/rato-tokyo/new-llm at 026a9b4, src/models/dproj.py.
    """

    layers = 1

    def __init__(self, width: int, inputs: int):
        super().__init__()
        self.width = width
        self.of_state = linear(width, width)
        self.of_inputs = linear(inputs, width, bias=True)
        self.norm = nn.LayerNorm(width)

    def project(self, inputs: Tensor) -> Tensor:
        share: Tensor = self.of_inputs(inputs)
        return share.unsqueeze(-2)

    def step(self, context: Tensor, share: Tensor) -> Tensor:
        state: Tensor = self.norm(context + F.gelu(share.squeeze(-2) + self.of_state(context)))
        return state.unsqueeze(-2)


class DProjTransformer(Transformer):
    """A transformer of width C = hidden_size on states p_t [C] that a recurrence computes from wider embeddings.

    ``e_t = LN(embedding of token t)`` [embed_dim], ``p_t = DProj(p_{t-1}, e_t)``, p = 0 before a row's first token. The
    first block reads p_t instead of the embedding, so keys, values and blocks have C dims, and the cache holds p as
    well. The head is a separate matrix [vocab_size, C].
    Source: github.com/rato-tokyo/new-llm at 026a9b4, src/models/dproj_pythia.py.

    projection_std, projection_bias_std: standard deviations of the initial W and b of the projection.
    All other options are those of Transformer.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_size: int,
        num_layers: int,
        heads: int,
        mlp_size: int,
        mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu",
        norm: Literal["layernorm", "rmsnorm"] = "layernorm",
        norm_eps: float = 1e-5,
        residual: Literal["sequential", "parallel", "parallel_shared"] = "sequential",
        bias: bool = True,
        init_std: float = 0.02,
        projection_std: float = 0.1,
        projection_bias_std: float = 0.01,
        vocab_size: int | None = None,
        *,
        attention: dict[str, Any],
        pos_encoding: dict[str, Any],
        tokens: int,
        seq_len: int,
        seed: int,
    ):
        within("model.embed_dim", embed_dim, 1, MOST_WIDTH, 512)
        at_least("model.projection_std", projection_std, 0, 0.1)
        at_least("model.projection_bias_std", projection_bias_std, 0, 0.01)
        super().__init__(
            hidden_size, num_layers, heads, mlp_size, mlp, norm, norm_eps, residual, bias, False, init_std, vocab_size,
            attention=attention, pos_encoding=pos_encoding, tokens=tokens, seq_len=seq_len, seed=seed,
            embed_dim=embed_dim,
        )  # fmt: skip
        self.embed_norm = nn.LayerNorm(embed_dim)
        self.projection = DProj(hidden_size, embed_dim)
        init_weights(self.projection, seed, projection_std, projection_bias_std)

    @property
    def recurrence(self) -> DProj:
        """The part that the first phase trains."""
        return self.projection

    def recurrent_inputs(self, tokens: Tensor) -> Tensor:
        """e [.., embed_dim] of tokens [..]."""
        normed: Tensor = self.embed_norm(self.embed(tokens))
        return normed

    def inputs(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """p [B, T, hidden_size] of tokens [B, T], starting from the cache's state or from zeros."""
        embedded = self.recurrent_inputs(input_ids)
        state = None if cache is None else cache.state
        if state is None:
            state = embedded.new_zeros(len(input_ids), self.hidden_size)
        # torch.compile would unroll the scan token by token, so the graph is cut around it.
        scan_rows = torch.compiler.disable(scan) if torch.compiler.is_compiling() else scan
        projected = scan_rows(self.projection, embedded, state)[:, :, 0]
        if cache is not None:
            cache.state = projected[:, -1].clone()  # a copy frees the other states
        return projected
