"""Rotary embedding with frequencies on a sigmoid."""

from functools import partial

from newllm.position.frequencies import sigmoid
from newllm.position.frequencies.scaled import Scaling
from newllm.position.rotary import Layout, Rotary


class RopeSigmoid(Rotary):
    """Rotary, with ``ln w_k = ln(w_min) / (1 + exp(-steepness (t_k - midpoint)))``, ``t_k = k / (K-1)``.

    ``w_min = omf * theta ** (-(K-1)/K)``, K = r / 2 pairs (`frequencies.sigmoid`; unified search of hybrid-rope, 2026).
    The other options, cost, kernel: `Rotary`.
    """

    def __init__(
        self,
        theta: float = 10000.0,
        steepness: float = 8.0,
        midpoint: float = 0.5,
        omf: float = 0.3,
        rotary_pct: float = 1.0,
        layout: Layout = "half",
        layers: str | list[int] = "all",
        scaling: Scaling = None,
        *,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        frequencies = partial(sigmoid, theta=theta, steepness=steepness, midpoint=midpoint, omf=omf)
        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(frequencies, rotary_pct, layout, layers, scaling, **sizes)
