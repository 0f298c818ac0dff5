"""Rotary position embedding."""

from functools import partial

from newllm.position.frequencies import geometric
from newllm.position.frequencies.scaled import Scaling
from newllm.position.rotary import Layout, Rotary


class Rope(Rotary):
    """RoPE: the pair k of coordinates turns by ``position * theta ** (-2k / r)`` (Su et al. 2021, arXiv 2104.09864).

    The exponent is over the r dims that turn, as in GPT-NeoX and Pythia. The other options, cost, kernel: `Rotary`.
    """

    def __init__(
        self,
        theta: float = 10000.0,
        rotary_pct: float = 1.0,
        layout: Layout = "half",
        layers: str | list[int] = "all",
        scaling: Scaling = None,
        *,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        frequencies = partial(geometric, theta=theta)
        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(frequencies, rotary_pct, layout, layers, scaling, **sizes)
