"""A learned matrix whose powers transform the keys."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from newllm.position.encoding import PositionEncoding

_Scaled = tuple[Tensor, Tensor]  # matrices [N, D, D], and the logarithms [N] of the factors they were divided by

_FIRST_ANGLE = 0.1  # radians per token of the fastest plane at the start
_POSITION_BITS = 20  # positions below 2**20
_MAX_LOG = 30.0  # of a key's factor; beyond it GELU acts as ReLU, so that the norm removes the factor


class KeyMatrix(PositionEncoding):
    """Keys at position p >= 1 become ``LayerNorm(GELU(k M^p))``; the key at 0 and all queries are unchanged.

    M [D, D] is learned, one for all layers and heads. It starts as rotations of the planes (i, i + 1) by the angles
    ``0.1 * 10 ** (-i / D)``, i = 0, 2, 4 … (D = 64 in the published runs, known as "Learnable (K only)").

    Positions are cut into blocks of s, about sqrt(T): ``M^(first + a s + b) = M^(first + b) (M^s)^a``. Both lists of
    powers, about sqrt(T) long, are built by doubling, and each key is multiplied by one of each: no loop over positions
    and no [T, D, D]. Each power is divided by its norm, whose logarithm is kept, so that distant keys stay finite even
    where M^p overflows.

    The norm makes a score depend on the key's own position, so this encoding is not relative. On MLA it acts only on
    the decoupled key (D = `rope_dim`), since a nonlinearity on restored keys would prevent absorption.
    Parameters: D^2 + 2 D (4,224 at D = 64). Cost: two products T x D x D per key head, in fp32. Kernel: plain causal
    attention.
    """

    rotates = True
    relative = False

    def __init__(self, layers: str | list[int] = "all", *, head_dim: int, num_layers: int):
        super().__init__(layers, num_layers=num_layers)
        self.matrix = nn.Parameter(torch.empty(head_dim, head_dim))
        self.norm = nn.LayerNorm(head_dim)

    def initial(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        if name != "matrix":
            return None
        width = shape[0]
        turns = [_FIRST_ANGLE * 10 ** (-i / width) for i in range(0, width - 1, 2)]
        planes = [torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in turns]
        return torch.block_diag(*planes, *[torch.eye(1)] * (width % 2))

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(k.device.type, enabled=False):
            exact = torch.promote_types(k.dtype, torch.float32)
            moved = self.norm(F.gelu(_transformed(k.to(exact), self.matrix.to(exact), positions)))
        return q, torch.where((positions > 0)[:, None], moved.to(k.dtype), k)


def _transformed(k: Tensor, matrix: Tensor, positions: Tensor) -> Tensor:
    """k [B, H, T, D] times matrix^position, up to a positive factor where the result would overflow."""
    count = len(positions)
    size = math.ceil(count**0.5)
    blocks = math.ceil(count / size)
    once = _scaled(matrix[None], matrix.new_zeros(1))
    first = int(positions[0]) if positions.device.type == "cpu" else positions[0]  # elsewhere int() would wait
    low, low_logs = _powers(once, size, first)
    high, high_logs = _powers(_powers(once, 1, size), blocks)
    rows = F.pad(k, (0, 0, 0, blocks * size - count)).unflatten(-2, (blocks, size))  # [B, H, blocks, s, D]
    rows = torch.einsum("bhasd,sde->bhase", rows, low)
    rows = torch.einsum("bhasd,ade->bhase", rows, high)
    logs = (high_logs[:, None] + low_logs).flatten()[:count]
    return rows.flatten(2, 3)[:, :, :count] * logs.clamp(max=_MAX_LOG).exp()[:, None]


def _powers(once: _Scaled, count: int, first: Tensor | int = 0) -> _Scaled:
    """once^first … once^(first + count - 1). A tensor `first` (0-d, integer) is not read back from its device."""
    one = torch.eye(once[0].shape[-1], dtype=once[0].dtype, device=once[0].device)[None]
    powers, step = (one, torch.zeros_like(once[1])), once
    for bit in range(first.bit_length() if isinstance(first, int) else _POSITION_BITS):
        needed = (first >> bit) & 1
        if isinstance(needed, Tensor):
            more = _times(powers, step)
            powers = torch.where(needed > 0, more[0], powers[0]), torch.where(needed > 0, more[1], powers[1])
        elif needed:
            powers = _times(powers, step)
        step = _times(step, step)
    step = once
    while len(powers[0]) < count:
        more = _times(powers, step)
        powers = torch.cat((powers[0], more[0])), torch.cat((powers[1], more[1]))
        step = _times(step, step)
    return powers[0][:count], powers[1][:count]


def _times(a: _Scaled, b: _Scaled) -> _Scaled:
    return _scaled(a[0] @ b[0], a[1] + b[1])


def _scaled(matrices: Tensor, logs: Tensor) -> _Scaled:
    """The matrices [N, D, D] divided by their norms (1 for a rotation), whose logarithms are added to `logs` [N]."""
    norms = matrices.detach().norm(dim=(1, 2)) / matrices.shape[-1] ** 0.5
    norms = norms.clamp(min=torch.finfo(norms.dtype).tiny)
    return matrices / norms[:, None, None], logs + norms.log()
