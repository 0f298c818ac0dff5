"""The context/token model: a recurrence that is trained to a fixed point, and a block that reads its states."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.errors import ConfigError
from newllm.model.base import LanguageModel
from newllm.model.init import init_weights
from newllm.position.nope import NoPE
from newllm.two_phase.context_block import ContextBlock
from newllm.two_phase.context_state import ContextState
from newllm.two_phase.recurrence import scan
from newllm.two_phase.token_block import TokenBlock

_PIECE = 4096  # tokens whose contexts of all layers exist at one time


class ContextToken(LanguageModel):
    """Logits ``wte h_t``, ``h_t = TokenBlock(c_t^1 .. c_t^L, u_t)``, contexts ``c_t = ContextBlock(c_{t-1}^L, u_t)``.

    u_t is the window of the last n = num_input_tokens embeddings ``LN(wte[token])``, oldest first, zeros before the
    start. Embeddings are frozen and tied to the head; contexts begin from zero. The ContextBlock is frozen too: a first
    phase trains it, the TokenBlock is trained on its states.

    layers: of either block. context_dim: width C of the contexts. embed_dim: width E of embeddings and final states.
    vocab_size: None takes the tokenizer's size. Weights of both blocks are drawn from N(0, init_std^2), their biases
    from N(0, bias_std^2), embeddings that nobody fills in as weights are.
    Source: github.com/rato-tokyo/new-llm at e2d7d20, src/models/llm.py.

    Handed over: the tokenizer's size, the training length, the weights' seed.
    """

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
        sizes = {"layers": layers, "context_dim": context_dim, "num_input_tokens": num_input_tokens}
        for name, size in (sizes | {"embed_dim": embed_dim}).items():
            if size < 1:
                example = {"layers": 6, "num_input_tokens": 1}.get(name, 768)
                raise ConfigError(f"model.{name} must be at least 1, as in model.{name}={example}; got {size}.")
        for name, value, example_std in (("init_std", init_std, 0.1), ("bias_std", bias_std, 0.01)):
            if value < 0:
                raise ConfigError(
                    f"model.{name} must be 0 or greater, as in model.{name}={example_std:g}; got {value:g}."
                )
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
    def recurrence(self) -> ContextBlock:
        return self.context_block

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        return self.token_block.blocks

    @property
    def head_weight(self) -> nn.Parameter:
        weight = self.embed.weight if self.head is None else self.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def recurrent_inputs(self, tokens: Tensor, before: Tensor | None = None) -> Tensor:
        """The windows [.., T, n E] of tokens [.., T]: of each the last n normed embeddings, its own last.

        before: the tokens [.., n - 1 or fewer] that come before; where there are none, the window has zeros.
        """
        n, length = self.num_input_tokens, tokens.shape[-1]
        if before is not None:
            tokens = torch.cat((before, tokens), dim=-1)
        normed = self.embed_norm(self.embed(tokens))
        normed = F.pad(normed, (0, 0, max(0, length + n - 1 - normed.shape[-2]), 0))[..., -(length + n - 1) :, :]
        return torch.cat([normed[..., i : i + length, :] for i in range(n)], dim=-1)

    def read(self, contexts: Tensor, windows: Tensor) -> Tensor:
        """States [.., E] that meet the head, of contexts [.., L, C] and windows [.., n E] of the same tokens."""
        states: Tensor = self.token_block(contexts, windows)
        return states

    def hidden(self, input_ids: Tensor, cache: ContextState | None = None, start: int = 0) -> Tensor:
        """States [B, T, E] by the true recurrence, from zero contexts or from where the cache is.

        start: of no effect, since nothing here knows positions. Contexts of all layers exist for a piece at a time.
        """
        rows, length = input_ids.shape
        state = ContextState(length) if cache is None else cache
        state.require(length)
        states = []
        for ids in input_ids.split(max(1, _PIECE // rows), dim=1):
            context, before = state.context, state.before
            if context is None or before is None:
                context, before = self.embed.weight.new_zeros(rows, self.context_dim), ids[:, :0]
            windows = self.recurrent_inputs(ids, before)
            contexts = scan(self.context_block, windows, context)
            states.append(self.read(contexts, windows))
            state.advance(ids.shape[1], contexts[:, -1, -1], self._last(torch.cat((before, ids), dim=1)))
        return torch.cat(states, dim=1)

    def _last(self, ids: Tensor) -> Tensor:
        """The ids [B, n - 1 or fewer] that the next window reaches back to."""
        return ids[:, max(0, ids.shape[1] - self.num_input_tokens + 1) :]

    def forward(self, input_ids: Tensor, cache: ContextState | None = None) -> Tensor:
        return F.linear(self.hidden(input_ids, cache), self.head_weight)

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> ContextState:
        """An empty state for `capacity` tokens (default: the training length); `batch` rows decode side by side."""
        return ContextState(self.seq_len if capacity is None else capacity)
