"""Multi-head latent attention."""

from typing import Any

import torch
from torch import Tensor, nn

from newllm.attention.cache import LayerCache
from newllm.attention.kernels import Kernel
from newllm.attention.layer import Attention, InFloat32, linear, merge_heads
from newllm.checks import MOST_WIDTH, within
from newllm.errors import ConfigError
from newllm.position.encoding import PositionEncoding

_NORM_EPS = 1e-6  # of the latent norms, as in DeepSeek's code, independent of the model's eps


class Latent(Attention):
    """MLA (DeepSeek-V2, arXiv 2405.04434, §2.1): keys and values are projections of one latent c of kv_dim numbers.

        c = W_DKV x                 k_h = [W_UK,h c | R(W_KR x)]          v_h = W_UV,h c
        q_h = [q^C_h | R(q^R_h)]    score = q_h . k_h / sqrt(nope + rope)  out = W_O [sum p v_h]

    Only layers whose encoding rotates have the rotary part (rope_dim wide, one key for all heads): a rotation of k^C
    would stand between W_UK and q and prevent absorption. Biases such as ALiBi's do not.

    Without a cache (training) k and v are computed. With one, W_UK is absorbed into the query and W_UV into the output:
    ``q~_h = W_UK,h^T q^C_h`` scores c itself, and ``o_h = W_UV,h sum p c``, so all heads read the same [c | k^R]. If
    many tokens come at once (a prompt), k and v are restored where that takes fewer multiplications (`absorbs`).
    Cache per token and layer: kv_dim + rope_dim numbers. No projection has a bias.

    value_dim: width of a value head (None: head_dim). query_dim: low-rank queries ``W_UQ RMSNorm(W_DQ x)``.
    latent_norm: RMS norm on c; the cache holds the normed c.
    """

    def __init__(
        self,
        kv_dim: int = 64,
        rope_dim: int = 16,
        value_dim: int | None = None,
        query_dim: int | None = None,
        latent_norm: bool = False,
        kernel: Kernel = "auto",
        *,
        hidden_size: int,
        heads: int,
        head_dim: int,
        rotates: bool,
    ):
        super().__init__(kernel, hidden_size=hidden_size, heads=heads, head_dim=head_dim)
        for name, value in {"kv_dim": kv_dim, "value_dim": value_dim, "query_dim": query_dim}.items():
            if value is not None:
                within(name, value, 1, MOST_WIDTH, 64)
        if rotates and (rope_dim <= 0 or rope_dim % 2):
            raise ConfigError(
                f"this encoding rotates keys, which attention=mla keeps in rope_dim separate dims: "
                f"rope_dim must be even and greater than 0, as in rope_dim=16; got {rope_dim}."
            )
        self.kv_dim = kv_dim
        self.rope_dim = rope_dim if rotates else 0
        self.value_dim = head_dim if value_dim is None else value_dim
        self.rotary_offset = head_dim
        self.scale = (head_dim + self.rope_dim) ** -0.5
        query = [head_dim, self.rope_dim]  # rows of a head
        if query_dim is None:
            self.q: nn.Module = linear(hidden_size, query, heads=heads)
        else:
            norm = nn.RMSNorm(query_dim, eps=_NORM_EPS)
            self.q = nn.Sequential(
                linear(hidden_size, query_dim), InFloat32(norm), linear(query_dim, query, heads=heads)
            )
        self.kv_down = linear(hidden_size, [kv_dim, self.rope_dim])  # rows: latent | rotary key
        self.latent_norm = InFloat32(nn.RMSNorm(kv_dim, eps=_NORM_EPS)) if latent_norm else nn.Identity()
        self.kv_up = linear(kv_dim, [head_dim, self.value_dim], heads=heads)  # rows, head by head: key | value
        self.out = linear(heads * self.value_dim, hidden_size)

    @staticmethod
    def rotary_width(options: dict[str, Any], head_dim: int) -> int:
        width = int(options.get("rope_dim", 16))
        return max(2, width + width % 2)  # the constructor refuses odd widths, if the layer's encoding rotates at all

    def forward(
        self, x: Tensor, positions: Tensor, encoding: PositionEncoding | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, T, nope + rope]
        q_nope, q_rope = q.split([self.head_dim, self.rope_dim], dim=-1)
        latent, k_rope = self.kv_down(x).split([self.kv_dim, self.rope_dim], dim=-1)
        latent = self.latent_norm(latent)  # [B, T, kv_dim]
        k_rope = k_rope[:, None]  # [B, 1, T, rope]
        q_rope_before, k_rope_before = q_rope, k_rope
        if encoding is not None and self.rope_dim:
            q_rope, k_rope = encoding.rotate(q_rope, k_rope, positions)
        if self.observer is not None:
            k_nope = self.kv_up(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)[..., : self.head_dim]
            observed = {
                "q_before": _join(q_nope, q_rope_before), "k_before": _join(k_nope, k_rope_before),
                "q": _join(q_nope, q_rope), "k": _join(k_nope, k_rope), "latent": latent,
            }  # fmt: skip
            self.observer(observed)
        if cache is None:
            k, v = self._restore(latent, k_rope)
            return self._output(self.attend(_join(q_nope, q_rope), k, v, encoding, self.scale))
        (stored,) = cache.append(_join(latent[:, None], k_rope))  # [B, 1, S, kv_dim + rope]
        if not self.absorbs(x.shape[1]):
            k, v = self._restore(*stored.split([self.kv_dim, self.rope_dim], dim=-1))
            return self._output(self.attend_cached(_join(q_nope, q_rope), k, v, cache.length, encoding, self.scale))
        up = self.kv_up.weight.unflatten(0, (self.heads, -1))  # [H, nope + value, kv_dim]
        w_uk, w_uv = up.split([self.head_dim, self.value_dim], dim=1)
        absorbed = _join(torch.matmul(q_nope, w_uk), q_rope)  # [B, H, T, kv_dim + rope]
        # The rotary part stays in the values: a view without it would be copied before the product.
        context = self.attend_cached(absorbed, stored, stored, cache.length, encoding, self.scale, unabsorbed=q_nope)
        return self._output(torch.matmul(context[..., : self.kv_dim], w_uv.mT))

    def absorbs(self, queries: int) -> bool:
        """Whether absorption takes fewer multiplications than restoring keys and values, for this many new tokens.

        Per cached token and head, restoring costs ``kv_dim (nope + value)`` multiplications, and absorption costs
        ``2 kv_dim - nope - value`` more for each query.
        """
        restored = self.head_dim + self.value_dim
        return queries * (2 * self.kv_dim - restored) <= self.kv_dim * restored

    def _restore(self, latent: Tensor, k_rope: Tensor) -> tuple[Tensor, Tensor]:
        """k [B, H, T, nope + rope] and v [B, H, T, value] of latent [B, (1,) T, kv_dim], k_rope [B, 1, T, rope]."""
        latent = latent.flatten(1, -2)
        kv = self.kv_up(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, T, nope + value]
        k_nope, v = kv.split([self.head_dim, self.value_dim], dim=-1)
        return _join(k_nope, k_rope), v

    def _output(self, out: Tensor) -> Tensor:
        """[B, H, T, value] -> [B, T, hidden]."""
        projected: Tensor = self.out(merge_heads(out))
        return projected


def _join(nope: Tensor, rope: Tensor) -> Tensor:
    """[nope | rope] on the last dim; a rotary part of one head is shared by all."""
    if not rope.shape[-1]:
        return nope
    return torch.cat((nope, rope.expand(-1, nope.shape[1], -1, -1)), dim=-1)
