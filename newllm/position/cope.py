"""CoPE: contextual position encoding."""

import copy

import torch
from torch import Tensor, nn

from newllm.errors import ConfigError
from newllm.position.bias import ScoreBias
from newllm.position.encoding import PositionEncoding


class Cope(PositionEncoding):
    """``q_i . (k_j + e[p_ij]) / sqrt(d)``, positions sum up gates (Golovneva et al. 2024, arXiv 2405.18719, eq. 3).

        g_ij = sigmoid(q_i . k_j / sqrt(d))        p_ij = min(g_ij + g_i(j+1) + ... + g_ii, npos_max - 1)

    So a query counts, backwards from itself, the tokens that matter to it; e of a fractional position is interpolated
    between its two neighbours. The table e serves all heads and starts at 0; in latent attention it is multiplied with
    the unrotated part of the queries. Any length works: positions from npos_max - 1 on share the last row.

    npos_max: rows of the table; None means seq_len.
    shared: it is published in two forms: one table for all layers (the authors' `cope-shared`), or, with False, one in
        each layer, as in the paper's listing.
    Parameters: npos_max * head_dim, in each layer unless shared. Cost: O(T^2 + T npos_max d) per head; the T^2 term
    costs several times a score (a cumulative sum and two look-ups for each). Kernel: blocked (score bias).
    """

    def __init__(
        self,
        npos_max: int | None = 64,
        shared: bool = True,
        layers: str | list[int] = "all",
        *,
        query_dim: int,
        seq_len: int,
        num_layers: int,
    ):
        super().__init__(layers, num_layers=num_layers)
        if npos_max is not None and npos_max < 2:
            raise ConfigError(
                f"pos_encoding.npos_max must be at least 2, as in pos_encoding.npos_max=64, or null for seq_len; "
                f"got {npos_max}."
            )
        self._tables = {layer: "table" if shared else f"table{layer}" for layer in sorted(self.layers)}
        self._own = next(iter(self._tables.values()), "table")  # the table of this view
        shape = (seq_len if npos_max is None else npos_max, query_dim)
        for name in dict.fromkeys(self._tables.values()):
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    @property
    def _table(self) -> Tensor:
        table: Tensor = getattr(self, self._own)
        return table

    def at_layer(self, layer: int) -> PositionEncoding | None:
        if layer not in self.layers or len({*self._tables.values()}) == 1:
            return super().at_layer(layer)
        view = copy.copy(self)  # of the same parameters
        view._own = self._tables[layer]
        return view

    def initial(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.zeros(shape)

    def bias(self) -> ScoreBias:
        return ScoreBias(self._read, (self._table,))

    def _read(self, q: Tensor, scores: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        table = self._table
        last, width = len(table) - 1, table.shape[1]
        visible = key_positions <= query_positions[:, None]  # [Tq, Tk]
        gates = torch.where(visible, scores.sigmoid(), 0.0)
        position = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=last)  # [..., Tq, Tk]
        whole = position.detach().floor()
        table_scores = (q[..., :width] @ table.T.to(q.dtype)).to(scores.dtype) * width**-0.5  # [..., Tq, npos_max]
        steps = table_scores.diff(dim=-1, append=table_scores[..., -1:])  # from each position to the next
        index = whole.long()
        return torch.addcmul(table_scores.gather(-1, index), steps.gather(-1, index), position - whole)
