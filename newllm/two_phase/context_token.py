"""The context/token model: a recurrence trained to a fixed point, and a block that reads its states."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from newllm.attention.layer import linear
from newllm.checks import MOST_LAYERS, MOST_WIDTH, at_least, within
from newllm.data import Dataset
from newllm.errors import ConfigError
from newllm.model.init import init_weights
from newllm.model.language_model import LanguageModel
from newllm.position.nope import NoPE
from newllm.precision import Precision
from newllm.two_phase.recurrence import Recurrence, scan
from newllm.two_phase.stored_contexts import (
    ContextReader,
    ContextRows,
    as_streams,
    true_contexts_in_memory,
    with_contexts,
)  # fmt: skip

_PIECE = 4096  # tokens whose contexts of all layers are in memory at a time


class ContextToken(LanguageModel):
    """Logits ``wte h_t``, ``h_t = TokenBlock(c_t^1 .. c_t^L, u_t)``, contexts ``c_t = ContextBlock(c_{t-1}^L, u_t)``.

    u_t is the window of the last n = num_input_tokens embeddings ``LN(wte[token])``, oldest first, zeros before the
    start. Contexts start from zero. The embeddings are frozen and tied to the head. The ContextBlock is frozen too: the
    first phase trains it, the second one trains the TokenBlock on its states.

    layers: of each block. context_dim: width C of the contexts. embed_dim: width E of embeddings and final states.
    vocab_size: None: the tokenizer's size. Weights and embeddings are drawn from N(0, init_std^2), biases from
    N(0, bias_std^2), unless a stage loads embeddings.
    Source: github.com/rato-tokyo/new-llm at e2d7d20, src/models/llm.py.

    The builder passes the tokenizer's size, the training length and the weights' seed.
    """

    reported_parts = ("context_block", "token_block")

    def __init__(
        self,
        layers: int = 6,
        context_dim: int = 768,
        num_input_tokens: int = 1,
        embed_dim: int = 768,
        vocab_size: int | None = None,
        init_std: float = 0.1,
        bias_std: float = 0.01,
        *,
        tokens: int,
        seq_len: int,
        seed: int,
    ):
        super().__init__()
        within("model.layers", layers, 1, MOST_LAYERS, 6)
        within("model.context_dim", context_dim, 1, MOST_WIDTH, 768)
        within("model.num_input_tokens", num_input_tokens, 1, MOST_LAYERS, 1)
        within("model.embed_dim", embed_dim, 1, MOST_WIDTH, 768)
        within("model.vocab_size", 1 if vocab_size is None else vocab_size, 1, MOST_WIDTH, 2048)
        at_least("model.init_std", init_std, 0, 0.1)
        at_least("model.bias_std", bias_std, 0, 0.01)
        if vocab_size is not None and vocab_size < tokens:
            raise ConfigError(
                f"the tokenizer has {tokens} ids and the model's vocabulary {vocab_size}: "
                f"give model.vocab_size={tokens} or model.vocab_size=null."
            )
        self.layers, self.context_dim, self.num_input_tokens = layers, context_dim, num_input_tokens
        self.hidden_size, self.seq_len = embed_dim, seq_len
        self.vocab_size = tokens if vocab_size is None else vocab_size
        self.position = NoPE(num_layers=layers)
        self.embed = nn.Embedding.from_pretrained(torch.empty(self.vocab_size, embed_dim), freeze=True)
        self.embed_norm = nn.LayerNorm(embed_dim)
        self.context_block = ContextBlock(layers, context_dim, num_input_tokens * embed_dim).requires_grad_(False)
        self.token_block = TokenBlock(layers, context_dim, embed_dim, num_input_tokens)
        self.head = None
        init_weights(self, seed, init_std, bias_std)

    @property
    def recurrence(self) -> "ContextBlock":
        return self.context_block

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        return self.token_block.blocks

    def check_config(self, cfg: DictConfig, trained: bool) -> None:
        model = f"model={(cfg.get('choices') or {}).get('model') or 'context_token'}"
        if not trained and not (cfg.get("phase1") or {}).get("_target_"):
            raise ConfigError(f"{model} needs a first phase, which trains its contexts; type phase1=published.")
        if (cfg.get("facts") or {}).get("_target_"):
            raise ConfigError(f"{model} reads its text as one stream, without rows of facts; type facts=none.")
        if cfg.data.get("passkey"):
            raise ConfigError(f"{model} reads its text as one stream, without passkeys; leave data.passkey out.")

    def arrange_rows(self, data: Dataset) -> Dataset:
        return as_streams(data)

    def with_stage_inputs(self, data: Dataset, device: torch.device, precision: Precision) -> Dataset:
        """Recomputes the true contexts of the validation text, with the bits that the first phase has stored."""
        contexts = true_contexts_in_memory(self, data.stream("val"), device, precision)
        return with_contexts(data, self.num_input_tokens, contexts)

    def model_for_rows(self, data: Dataset) -> LanguageModel:
        return ContextReader(self, data.val.contexts.dtype) if isinstance(data.val, ContextRows) else self

    def recurrent_inputs(self, tokens: Tensor, before: Tensor | None = None) -> Tensor:
        """The windows [.., T, n E] of tokens [.., T]: the last n normed embeddings up to each token, in order.

        before: up to n - 1 tokens [.., n - 1] that precede them; missing ones are zeros in the window.
        """
        n, length = self.num_input_tokens, tokens.shape[-1]
        if before is not None:
            tokens = torch.cat((before, tokens), dim=-1)
        normed = self.embed_norm(self.embed(tokens))
        normed = F.pad(normed, (0, 0, max(0, length + n - 1 - normed.shape[-2]), 0))[..., -(length + n - 1) :, :]
        return torch.cat([normed[..., i : i + length, :] for i in range(n)], dim=-1)

    def windows(self, ids: Tensor) -> Tensor:
        """The same windows [.., n E] from the ids [.., n] in each; -1 for the missing ones."""
        normed: Tensor = self.embed_norm(self.embed(ids.clamp(min=0)))
        return normed.masked_fill((ids < 0)[..., None], 0).flatten(-2)

    def read(self, contexts: Tensor, windows: Tensor) -> Tensor:
        """Final states [.., E] from the contexts [.., L, C] and windows [.., n E] of the same tokens."""
        states: Tensor = self.token_block(contexts, windows)
        return states

    def hidden(self, input_ids: Tensor, cache: "ContextState | None" = None, start: int = 0) -> Tensor:
        """Final states [B, T, E] by the true recurrence, from zero contexts or from those of the cache.

        start: ignored, since the model has no positions.
        """
        rows, length = input_ids.shape
        state = ContextState(length) if cache is None else cache
        state.advance(length)
        states = []
        for ids in input_ids.split(max(1, _PIECE // rows), dim=1):
            context, before = state.context, state.before
            if context is None or before is None:
                context, before = self.embed.weight.new_zeros(rows, self.context_dim), ids[:, :0]
            windows = self.recurrent_inputs(ids, before)
            contexts = scan(self.context_block, windows, context)
            states.append(self.read(contexts, windows))
            seen = torch.cat((before, ids), dim=1)
            reach = max(0, seen.shape[1] - self.num_input_tokens + 1)  # start of the next window
            state.context, state.before = contexts[:, -1, -1], seen[:, reach:]
        return torch.cat(states, dim=1)

    def forward(self, input_ids: Tensor, cache: "ContextState | None" = None) -> Tensor:
        return F.linear(self.hidden(input_ids, cache), self.head_weight)

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> "ContextState":
        """An empty state with room for `capacity` tokens (default: the training length)."""
        return ContextState(self.seq_len if capacity is None else capacity)


class ContextBlock(Recurrence):
    """Layers ``c^i = LN(c^{i-1} + ReLU(W_i [c^{i-1}; u] + b_i))``; c^0 is c^L of the previous token.

    Every layer reads the inputs u [.., I]; contexts are [.., C]. Parameters: layers * ((C + I) C + 3 C).
    Source: github.com/rato-tokyo/new-llm at e2d7d20, src/models/layers.py and blocks.py.
    """

    def __init__(self, layers: int, width: int, inputs: int):
        super().__init__()
        self.layers, self.width = layers, width
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
    """``LN(c + ReLU(W [c; u] + b))``, with W stored in two parts, W [c; u] + b = W_c c + (W_u u + b)."""

    def __init__(self, width: int, inputs: int):
        super().__init__()
        self.of_context = linear(width, width)
        self.of_inputs = linear(inputs, width, bias=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, context: Tensor, share: Tensor) -> Tensor:
        """context [.., C]; share [.., C]: `of_inputs` of the inputs."""
        out: Tensor = self.norm(context + F.relu(share + self.of_context(context)))
        return out


class TokenBlock(nn.Module):
    """Layers ``h^i = LN(P_i h^{i-1} + ReLU(W_i [c^i; h^{i-1}] + b_i))``, where h^0 is the input window.

    Layer i reads the context of context layer i, and nothing of other tokens. Widths shrink evenly from n E (n tokens
    in a window) to E, ``d_i = n E - floor((n - 1) E i / L)``. A layer of widths a to b has (C + a) b + 3 b parameters,
    and a b + b more for P_i, which is the identity if a = b.
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
        out: Tensor = self.norm(self.shortcut(x) + F.relu(self.linear(torch.cat((context, x), dim=-1))))
        return out


class ContextState:
    """The cache of a ContextToken: the context [B, C] after the last token, and the ids of the last n - 1 tokens.

    Its size does not depend on the number of tokens read. capacity: the maximum number of tokens.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.context: Tensor | None = None
        self.before: Tensor | None = None  # [B, n - 1 or fewer]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more. Raises ConfigError if there is no room for them."""
        stop = self.length + tokens
        if stop > self.capacity:
            raise ConfigError(
                f"the cache has room for {self.capacity} tokens and {stop} are needed; make it with capacity={stop}."
            )
        self.length = stop

    def select(self, rows: Tensor, capacity: int) -> "ContextState":
        """A copy with the batch rows `rows` [B'] of this one, which may repeat, and room for `capacity` tokens."""
        copy = ContextState(capacity)
        copy.advance(self.length)
        if self.context is not None and self.before is not None:
            copy.context, copy.before = self.context[rows], self.before[rows]
        return copy

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.context, self.before) if tensor is not None)

    @property
    def bytes_per_token(self) -> float:
        """Bytes divided by the tokens read."""
        return self.nbytes / max(1, self.length)
