"""FIRE: functional interpolation for relative positions."""

import torch
from torch import Tensor, nn

from newllm.checks import MOST_WIDTH, above, within
from newllm.position.bias import MatrixBias, by_distance, past_distances
from newllm.position.encoding import PositionEncoding

_CHUNK = {"cpu": 2**13}  # inputs of f at a time: its hidden layer fits in the cache, which is several times faster
_CHUNK_ELSEWHERE = 2**22
_EPS = 1e-6  # avoids division by 0 where c = 0; from the authors' listing


class Fire(PositionEncoding):
    """``q_i . k_j / sqrt(d) + f(psi(i - j) / psi(max(L, i)))``, ``psi(x) = ln(|c| x + 1)`` (Li et al. 2024, §3.3).

    arXiv 2310.04418. f is an MLP with one hidden layer of ReLU, 1 -> width -> heads; c and the threshold L are learned:
    below L the bias depends only on i - j; beyond it, distances are interpolated into [0, 1], so that any length works.
    i counts from the first key. As in the authors' listing, L is `threshold` times a learned factor.

    c, threshold: initial values. f starts from U(-1 / sqrt(n), 1 / sqrt(n)), where n is a layer's number of inputs.
    Parameters: width * (heads + 2) + heads + 2, shared by all layers. Cost: O(T^2) per head, plus, beyond
    the threshold, f for every pair: O(T^2 width heads), which dominates. Kernel: blocked (matrix bias).
    """

    def __init__(
        self,
        width: int = 32,
        c: float = 0.1,
        threshold: float = 512.0,
        layers: str | list[int] = "all",
        *,
        heads: int,
        num_layers: int,
    ):
        super().__init__(layers, num_layers=num_layers)
        within("pos_encoding.width", width, 1, MOST_WIDTH, 32)
        above("pos_encoding.c", c, 0, 0.1)
        above("pos_encoding.threshold", threshold, 0, 512)
        self.first_c, self.threshold = c, threshold
        self.c, self.factor = (nn.Parameter(torch.empty(1)) for _ in range(2))
        self.weight1, self.bias1 = nn.Parameter(torch.empty(width, 1)), nn.Parameter(torch.empty(width))
        self.weight2, self.bias2 = nn.Parameter(torch.empty(heads, width)), nn.Parameter(torch.empty(heads))

    def initial(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        if name in ("c", "factor"):
            return torch.tensor([self.first_c if name == "c" else 1.0])
        inputs = 1 if name.endswith("1") else self.weight2.shape[1]
        return torch.rand(shape, generator=generator).mul_(2).sub_(1).div_(inputs**0.5)

    def bias(self) -> MatrixBias:
        return MatrixBias(self._matrix, tuple(self.parameters()))

    def _matrix(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        threshold = (self.threshold * self.factor).abs()
        # Fewer distances than pairs have to be computed. Elsewhere reading the threshold would wait for the device.
        if threshold.device.type == "cpu" and query_positions[-1] <= threshold:
            largest = self._psi(threshold) + _EPS
            return by_distance(lambda distance: self._f(self._psi(distance) / largest), query_positions, key_positions)
        largest = self._psi(torch.maximum(query_positions, threshold)) + _EPS  # [Tq]
        return self._f(self._psi(past_distances(query_positions, key_positions)) / largest[:, None])

    def _psi(self, distance: Tensor) -> Tensor:
        return torch.log1p(self.c.abs() * distance)

    def _f(self, x: Tensor) -> Tensor:
        """[...] -> [heads, ...]."""
        outputs = []
        for chunk in x.flatten().split(_CHUNK.get(x.device.type, _CHUNK_ELSEWHERE)):
            hidden = torch.relu(self.weight1 * chunk + self.bias1[:, None])  # [width, N]
            outputs.append(self.weight2 @ hidden + self.bias2[:, None])
        return torch.cat(outputs, dim=1).unflatten(1, x.shape)
