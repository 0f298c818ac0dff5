"""The decoder-only transformer: one class, whose options cover the published variants."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from newllm.attention.cache import Cache, LayerCache
from newllm.attention.layer import Attention, linear
from newllm.build import build
from newllm.checks import MOST_LAYERS, MOST_WIDTH, at_least, within
from newllm.config.values import class_of
from newllm.errors import ConfigError
from newllm.model.feed_forward import Gelu, SwiGLU
from newllm.model.init import init_weights
from newllm.model.language_model import LanguageModel
from newllm.position.encoding import PositionEncoding


class Transformer(LanguageModel):
    """A causal language model: ``model(input_ids [B, T]) -> logits [B, T, vocab_size]``.

    mlp: "gelu" (two matrices) | "gelu_tanh" (the same with GPT-2's approximation) | "swiglu" (three).
    norm: "layernorm" | "rmsnorm".
    residual: "sequential" ``x += attn(norm1 x); x += mlp(norm2 x)`` | "parallel" ``x += attn(norm1 x) + mlp(norm2 x)``
    (GPT-NeoX) | "parallel_shared", the same with one norm for both. bias: linear layers of the MLP have biases
    (attention has its own option). tied: the head is the embedding. vocab_size: None means the tokenizer's size,
    rounded up to a multiple of 64, which suits matrix kernels. head_dim: width of a head; None: hidden_size / heads.

    width_base: the width at which lr and init_std were chosen; None: they are used as they are. At another width the
    model is scaled by the maximal update parametrization for Adam (Yang et al. 2022, arXiv 2203.03466, table 8), with
    m = hidden_size / width_base: the final states are divided by m, the matrices of the blocks start with init_std /
    sqrt(m), and the optimizer divides their rate by m (`rate_divisor`). Heads and mlp_size (and MLA's kv_dim) have to
    grow with the width, so that a head stays as wide.

    `build_model` passes the nodes of attention and encoding, the tokenizer's size, the training length and the seed of
    the weights. embed_dim: width of the embedding, for subclasses that project it before the first block.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        heads: int,
        mlp_size: int,
        mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu",
        norm: Literal["layernorm", "rmsnorm"] = "layernorm",
        norm_eps: float = 1e-5,
        residual: Literal["sequential", "parallel", "parallel_shared"] = "sequential",
        bias: bool = True,
        tied: bool = False,
        init_std: float = 0.02,
        vocab_size: int | None = None,
        width_base: int | None = None,
        head_dim: int | None = None,
        *,
        attention: dict[str, Any],
        pos_encoding: dict[str, Any],
        tokens: int,
        seq_len: int,
        seed: int,
        embed_dim: int | None = None,
    ):
        super().__init__()
        for name, size, most, usual in (
            ("hidden_size", hidden_size, MOST_WIDTH, 256), ("num_layers", num_layers, MOST_LAYERS, 4),
            ("heads", heads, MOST_WIDTH, 4), ("mlp_size", mlp_size, MOST_WIDTH, 704),
            ("vocab_size", 1 if vocab_size is None else vocab_size, MOST_WIDTH, 2048),
            ("width_base", hidden_size if width_base is None else width_base, MOST_WIDTH, 256),
            ("head_dim", 1 if head_dim is None else head_dim, MOST_WIDTH, 64),
        ):  # fmt: skip
            within(f"model.{name}", size, 1, most, usual)
        at_least("model.init_std", init_std, 0, 0.02)
        at_least("model.norm_eps", norm_eps, 0, 1e-5)
        if head_dim is None and hidden_size % heads:
            near = [n for n in range(1, hidden_size + 1) if hidden_size % n == 0]
            raise ConfigError(
                f"model.hidden_size={hidden_size} is not divisible by model.heads={heads}; "
                f"try model.heads={min(near, key=lambda n: abs(n - heads))}, or give a head "
                "its own width (model.head_dim=…)."
            )
        if vocab_size is not None and vocab_size < tokens:
            raise ConfigError(
                f"the tokenizer has {tokens} ids and the model's vocabulary {vocab_size}: "
                f"give model.vocab_size={_round_up(tokens)} or model.vocab_size=null."
            )
        self.hidden_size, self.num_layers, self.heads = hidden_size, num_layers, heads
        self.head_dim = hidden_size // heads if head_dim is None else head_dim
        self.vocab_size = _round_up(tokens) if vocab_size is None else vocab_size
        self.seq_len = seq_len
        self.recompute = False

        rotary_width = class_of(attention, Attention).rotary_width(attention, self.head_dim)
        self.position = build(
            pos_encoding,
            PositionEncoding,
            num_layers=num_layers,
            heads=heads,
            head_dim=rotary_width,
            query_dim=self.head_dim,
            hidden_size=hidden_size,
            seq_len=seq_len,
        )
        embeddings = torch.empty(self.vocab_size, hidden_size if embed_dim is None else embed_dim)
        self.embed = nn.Embedding.from_pretrained(embeddings, freeze=False)

        def make_norm() -> nn.Module:
            return (nn.LayerNorm if norm == "layernorm" else nn.RMSNorm)(hidden_size, eps=norm_eps)

        blocks = []
        for layer in range(num_layers):
            encoding = self.position.at_layer(layer)
            attention_layer = build(
                attention,
                Attention,
                hidden_size=hidden_size,
                heads=heads,
                head_dim=self.head_dim,
                norm_eps=norm_eps,
                rotates=encoding is not None and encoding.rotates,
            )
            if mlp == "swiglu":
                feed_forward: nn.Module = SwiGLU(hidden_size, mlp_size, bias)
            else:
                feed_forward = Gelu(hidden_size, mlp_size, bias, "none" if mlp == "gelu" else "tanh")
            second_norm = None if residual == "parallel_shared" else make_norm()
            blocks.append(
                Block(attention_layer, feed_forward, make_norm(), second_norm, residual != "sequential", encoding)
            )
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = make_norm()
        self.head = None if tied else linear(hidden_size, self.vocab_size)
        init_weights(self, seed, init_std)
        if width_base is not None:
            self.rate_divisor = hidden_size / width_base
            with torch.no_grad():
                for linear_layer in self.hidden_layers():
                    linear_layer.weight.div_(math.sqrt(self.rate_divisor))

    def forward(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, vocab_size] of input_ids [B, T]; with a cache, these tokens follow those that it holds."""
        return F.linear(self.hidden(input_ids, cache), self.head_weight)

    def hidden(self, input_ids: Tensor, cache: Cache | None = None, start: int = 0) -> Tensor:
        """States [B, T, hidden_size] after the final norm. start: the first token's position (ignored with a cache)."""
        if cache is not None:
            start = cache.length
        stop = start + input_ids.shape[1]
        if self.position.limit is not None and stop > self.position.limit:
            raise ConfigError(
                f"pos_encoding has values for {self.position.limit} positions and {stop} are needed: "
                f"shorten the input, or train with seq_len={stop}."
            )
        positions = torch.arange(start, stop, device=input_ids.device)
        x = self.inputs(input_ids, cache)
        for i, block in enumerate(self.blocks):
            if self.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, positions, use_reentrant=False)
            else:
                x = block(x, positions, None if cache is None else cache.layers[i])
        x = self.final_norm(x)
        return x if self.rate_divisor == 1 else x / self.rate_divisor

    def recompute_layers(self) -> None:
        self.recompute = True

    def inputs(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Input [B, T, hidden_size] of the first block for tokens [B, T], which follow those in the cache."""
        return self.embed(input_ids)

    def auxiliary(self) -> Tensor | None:
        """Mean of the layers' auxiliary losses."""
        attentions: list[Any] = [block.attention for block in self.blocks]
        terms = [term for attention in attentions if (term := attention.auxiliary()) is not None]
        return torch.stack(terms).mean(dim=0) if terms else None

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` tokens (default: the training length)."""
        return Cache(self.num_layers, self.seq_len if capacity is None else capacity)


class Block(nn.Module):
    """Attention and MLP around a residual stream: x [B, T, hidden] -> x."""

    encoding: PositionEncoding | None

    def __init__(
        self,
        attention: Attention,
        mlp: nn.Module,
        norm: nn.Module,
        mlp_norm: nn.Module | None,
        parallel: bool,
        encoding: PositionEncoding | None,
    ):
        super().__init__()
        self.norm, self.attention, self.mlp_norm, self.mlp = norm, attention, mlp_norm, mlp
        self.parallel = parallel
        # Not registered as a submodule: the model owns the encoding, and its layers share it.
        object.__setattr__(self, "encoding", encoding)

    def forward(self, x: Tensor, positions: Tensor, cache: LayerCache | None = None) -> Tensor:
        if self.encoding is not None:
            x = self.encoding.at_input(x, positions)
        normed = self.norm(x)
        attended = self.attention(normed, positions, self.encoding, cache)
        if self.parallel:
            return x + attended + self.mlp(normed if self.mlp_norm is None else self.mlp_norm(x))
        assert self.mlp_norm is not None
        x = x + attended
        return x + self.mlp(self.mlp_norm(x))


def _round_up(size: int) -> int:
    return -(-size // 64) * 64
