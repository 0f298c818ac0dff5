"""CoPE: contextual position encoding."""

import torch
from torch import Tensor, nn

from newllm.errors import ConfigError
from newllm.position.bias import ScoreBias
from newllm.position.encoding import PositionEncoding


class Cope(PositionEncoding):
    """``q_i . (k_j + e[p_ij]) / sqrt(d)``, positions counted in gates (Golovneva et al. 2024, arXiv 2405.18719, eq. 3).

        g_ij = sigmoid(q_i . k_j / sqrt(d))        p_ij = min(g_ij + g_i(j+1) + ... + g_ii, npos_max - 1)

    A query so counts the tokens that matter to it, back from itself; e of a fractional position is interpolated between
    its two neighbours. One table e for all heads and layers, 0 at first (the authors' code: `cope-shared`); in latent
    attention it meets the unrotated part of the queries. Any length has a value: positions from npos_max - 1 on share
    the last one.

    npos_max: rows of the table; None takes seq_len.
    Parameters: npos_max * head_dim. Cost: O(T^2 + T npos_max d) per head, the first several times that of a plain score
    (a cumulative sum and two look-ups of each). Kernel: blocked (score bias).
    """

    def __init__(
        self,
        npos_max: int | None = 64,
        layers: str | list[int] = "all",
        *,
        hidden_size: int,
        heads: int,
        seq_len: int,
        num_layers: int,
    ):
        super().__init__(layers, num_layers=num_layers)
        if npos_max is not None and npos_max < 2:
            raise ConfigError(
                f"pos_encoding.npos_max must be at least 2, as in pos_encoding.npos_max=64, or null for seq_len; "
                f"got {npos_max}."
            )
        self.table = nn.Parameter(torch.empty(seq_len if npos_max is None else npos_max, hidden_size // heads))

    def initial(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.zeros(shape)

    def bias(self) -> ScoreBias:
        return ScoreBias(self._read, (self.table,))

    def _read(self, q: Tensor, scores: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        last, width = len(self.table) - 1, self.table.shape[1]
        seen = key_positions <= query_positions[:, None]  # [Tq, Tk]
        gates = torch.where(seen, scores.sigmoid(), 0.0)
        position = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=last)  # [..., Tq, Tk]
        whole = position.detach().floor()
        of_table = (q[..., :width] @ self.table.T.to(q.dtype)).to(scores.dtype) * width**-0.5  # [..., Tq, npos_max]
        steps = of_table.diff(dim=-1, append=of_table[..., -1:])  # from each position to the next
        index = whole.long()
        return torch.addcmul(of_table.gather(-1, index), steps.gather(-1, index), position - whole)
