"""Rotary embedding with frequencies given one by one."""

from functools import partial

from newllm.position.frequencies import listed
from newllm.position.frequencies.scaled import Scaling
from newllm.position.rotary import Layout, Rotary


class RopeList(Rotary):
    """Rotary, with ``w_k = inv_freq[k]``: a list of r / 2 numbers above 0.

    The other options, cost, kernel: `Rotary`.
    """

    def __init__(
        self,
        inv_freq: list[float],
        rotary_pct: float = 1.0,
        layout: Layout = "half",
        layers: str | list[int] = "all",
        scaling: Scaling = None,
        *,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        frequencies = partial(listed, inv_freq)
        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(frequencies, rotary_pct, layout, layers, scaling, **sizes)
