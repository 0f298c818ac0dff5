"""Absolute encodings: a vector per position, added to the layer's input."""

import torch
from torch import Tensor, nn

from newllm.errors import ConfigError
from newllm.position import frequencies
from newllm.position.encoding import PositionEncoding


class Learned(PositionEncoding):
    """A learned vector per position, ``x + table[position]``, as in GPT-2 (Radford et al. 2019).

    The table has seq_len rows; longer inputs raise ConfigError. layers: those whose input it is added to; [0] is GPT-2.
    Cost: seq_len * hidden parameters. Kernel: plain causal attention.
    """

    relative = False

    def __init__(self, layers: str | list[int] = [0], *, hidden_size: int, seq_len: int, num_layers: int):  # noqa: B006
        super().__init__(layers, num_layers=num_layers)
        self.limit = seq_len
        self.table = nn.Parameter(torch.empty(seq_len, hidden_size))

    def at_input(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table[positions]


class Sinusoidal(PositionEncoding):
    """``PE(p, 2k) = sin(p w_k), PE(p, 2k+1) = cos(p w_k), w_k = theta ** (-2k / hidden)`` (Vaswani et al. 2017, §3.5).

    The paper multiplies the embeddings by sqrt(hidden); here the table is divided by it, which gives the same ratio
    without inflating the residual stream. layers: the layers whose input it is added to.
    Cost: O(T hidden). Kernel: plain causal attention.
    """

    relative = False

    def __init__(
        self,
        theta: float = 10000.0,
        layers: str | list[int] = [0],  # noqa: B006
        *,
        hidden_size: int,
        num_layers: int,
    ):
        super().__init__(layers, num_layers=num_layers)
        if hidden_size % 2:
            raise ConfigError(f"pos_encoding=sinusoidal needs an even model.hidden_size; got {hidden_size}.")
        self.register_buffer(
            "inv_freq", torch.tensor(frequencies.geometric(hidden_size, theta)).float(), persistent=False
        )
        self.inv_freq: Tensor

    def at_input(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = positions[:, None].float() * self.inv_freq.float()  # [T, hidden/2]
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # [T, hidden]
        return x + table / x.shape[-1] ** 0.5
