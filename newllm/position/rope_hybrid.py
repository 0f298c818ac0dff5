"""Rotary embedding with a mix of geometric and anchored-polynomial frequencies."""

from functools import partial

from newllm.position.frequencies import hybrid
from newllm.position.frequencies.scaled import Scaling
from newllm.position.rotary import Layout, Rotary


class RopeHybrid(Rotary):
    """Rotary, with ``w = (1 - alpha) geometric(theta) + alpha anchored_polynomial(theta, p, omf)``, a linear mix.

    The mix is of frequencies, not of their logarithms (`frequencies.hybrid`; unified search of hybrid-rope, 2026, whose
    hybrid_a0.2_t100k is alpha=0.2 theta=1e5). Other encodings called hybrid elsewhere are not this one.
    The other options, cost, kernel: `Rotary`.
    """

    def __init__(
        self,
        theta: float = 10000.0,
        alpha: float = 0.2,
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
        frequencies = partial(hybrid, theta=theta, alpha=alpha, p=p, omf=omf)
        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(frequencies, rotary_pct, layout, layers, scaling, **sizes)
