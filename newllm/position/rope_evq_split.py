"""Rotary embedding whose later channels are EVQ-Cosh."""

import numpy as np

from newllm.position.frequencies import evq_split, optimal_tau
from newllm.position.frequencies.scaled import Scaling
from newllm.position.rotary import Layout, Rotary


class RopeEvqSplit(Rotary):
    """Rotary: the first `kept` channels geometric on the midpoint grid, the others EVQ-Cosh between its ends.

    With ``g_k = theta ** -((k + 1/2) / K)``: g_k for k < kept, then ``g_(K-1) ** phi * g_kept ** (1 - phi)``, phi being
    that of `RopeEvq` on the closed grid (`frequencies.evq_split`; hybrid-rope, 2026, where it is one of four things
    called hybrid). kept: null is half of the channels. tau: null is the rule `frequencies.optimal_tau`,
    head_dim / sqrt(seq_len).
    The other options, cost, kernel: `Rotary`.
    """

    def __init__(
        self,
        theta: float = 500000.0,
        tau: float | None = None,
        kept: int | None = None,
        rotary_pct: float = 1.0,
        layout: Layout = "half",
        layers: str | list[int] = "all",
        scaling: Scaling = None,
        *,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        chosen = optimal_tau(head_dim, seq_len) if tau is None else tau

        def frequencies(width: int) -> np.ndarray:
            return evq_split(width, theta, chosen, width // 4 if kept is None else kept)

        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(frequencies, rotary_pct, layout, layers, scaling, **sizes)
