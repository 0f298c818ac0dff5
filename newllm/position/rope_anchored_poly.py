"""Rotary embedding with frequencies on an anchored polynomial."""

from functools import partial

from newllm.position.frequencies import anchored_polynomial
from newllm.position.frequencies.scaled import Scaling
from newllm.position.rotary import Layout, Rotary


class RopeAnchoredPolynomial(Rotary):
    """Rotary, with ``ln w_k = t_k ** p * ln w_min``, ``t_k = k / (K-1)``: from 1 to w_min, both reached.

    ``w_min = omf * theta ** (-(K-1)/K)``, K = r / 2 pairs (`frequencies.anchored_polynomial`; unified search of
    hybrid-rope, 2026). The other options, cost, kernel: `Rotary`.
    """

    def __init__(
        self,
        theta: float = 10000.0,
        p: float = 3.9,
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
        frequencies = partial(anchored_polynomial, theta=theta, p=p, omf=omf)
        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(frequencies, rotary_pct, layout, layers, scaling, **sizes)
