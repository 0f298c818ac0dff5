"""Rotations in three dimensions."""

import numpy as np
import torch
from torch import Tensor

from newllm.checks import above
from newllm.errors import ConfigError
from newllm.position.encoding import PositionEncoding


class Rope3D(PositionEncoding):
    """RoPE that rotates groups of 3 dims about one fixed axis instead of pairs.

    Of the first ``r = 3 * floor(int(head_dim * rotary_pct) / 3)`` dims, those of group g = 0 .. G - 1 (three in a row)
    rotate by ``position * theta ** (-g / G)``, by Rodrigues' formula with the cross product K x = u x x:

        R x = x + sin(angle) K x + (1 - cos(angle)) K (K x)

    Rotations about one axis commute, so a score depends only on the difference of positions, as in RoPE
    (Su et al. 2021, arXiv 2104.09864). The component along the axis, a third of each group, does not rotate.
    axis: u, any nonzero vector; published runs used [1, 1, 1] and later [1, 2, 3], both with rotary_pct=0.25.
    No parameters. Angles are fp32. Cost: O(T r) per head. Kernel: plain causal attention. On MLA it rotates the
    decoupled key (`rope_dim` wide).
    """

    rotates = True

    def __init__(
        self,
        theta: float = 10000.0,
        rotary_pct: float = 1.0,
        axis: list[float] = [1.0, 1.0, 1.0],  # noqa: B006
        layers: str | list[int] = "all",
        *,
        head_dim: int,
        num_layers: int,
    ):
        super().__init__(layers, num_layers=num_layers)
        above("theta", theta, 0, 10000)
        if len(axis) != 3 or not any(axis):
            raise ConfigError(f"axis must be three numbers that are not all 0, as in 'axis=[1,2,3]'; got {axis}.")
        if head_dim < 3:
            raise ConfigError(
                f"pos_encoding=rope_3d rotates 3 dims at a time, and there are {head_dim}; try rope_dim=16."
            )
        self.groups = int(head_dim * rotary_pct) // 3
        if not 0 < rotary_pct <= 1 or self.groups == 0:
            raise ConfigError(
                f"rotary_pct must lie in (0, 1] and give 3 or more rotary dims of the {head_dim} there are, "
                f"as rotary_pct=1 does; {rotary_pct:g} gives {head_dim * rotary_pct:g}."
            )
        inv_freq = theta ** (-np.arange(self.groups) / self.groups)
        x, y, z = np.array(axis) / np.linalg.norm(axis)
        cross = [[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]
        self.register_buffer("inv_freq", torch.tensor(inv_freq, dtype=torch.float32), persistent=False)
        self.register_buffer("cross", torch.tensor(cross, dtype=torch.float32), persistent=False)
        self.inv_freq: Tensor
        self.cross: Tensor

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(q.device.type, enabled=False):
            angles = (positions[:, None].float() * self.inv_freq.float())[..., None, None]  # [T, G, 1, 1]
            cross = self.cross.float()
            turns = angles.sin() * cross + (1 - angles.cos()) * (cross @ cross)  # R - 1, [T, G, 3, 3]
            return self._turn(q, turns), self._turn(k, turns)

    def _turn(self, x: Tensor, turns: Tensor) -> Tensor:
        """x [B, H, T, D] with its first 3G dims rotated."""
        triples, rest = x.split([3 * self.groups, x.shape[-1] - 3 * self.groups], dim=-1)
        exact = triples.to(torch.promote_types(x.dtype, turns.dtype)).unflatten(-1, (self.groups, 3))
        turned = exact + torch.einsum("tgij,bhtgj->bhtgi", turns.to(exact.dtype), exact)
        return torch.cat((turned.flatten(-2).to(x.dtype), rest), dim=-1)
