"""Kernelized biases: logarithmic and power (Chi et al. 2022)."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from newllm.errors import ConfigError
from newllm.position.bias import MatrixBias, by_distance
from newllm.position.encoding import PositionEncoding

_MINIMUM = 0.01  # of p and a: `eps` in the authors' code, github.com/chijames/KERPLE


class _Kerple(PositionEncoding):
    """Base of both kernels: p and a per head, drawn from U(0, 2) and U(0, 1) as the authors do, or given."""

    largest_p = float("inf")

    def __init__(
        self,
        p: float | list[float] | Literal["uniform"] = "uniform",
        a: float | list[float] | Literal["uniform"] = "uniform",
        layers: str | list[int] = "all",
        *,
        heads: int,
        num_layers: int,
    ):
        super().__init__(layers, num_layers=num_layers)
        self.given = {"p": _per_head("p", p, heads, self.largest_p), "a": _per_head("a", a, heads, float("inf"))}
        self.p, self.a = (nn.Parameter(torch.empty(heads)) for _ in range(2))

    def initial(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        given = self.given[name]
        if given is not None:
            return given
        return torch.rand(shape, generator=generator).mul_(2.0 if name == "p" else 1.0).clamp_(min=_MINIMUM)

    def in_domain(self) -> tuple[Tensor, Tensor]:
        """p and a [heads, 1], clamped to their domain, which an optimizer step may have left.

        Clamped in place, as the authors do: a clamp in the graph would give values outside the domain no gradient.
        """
        self.p.data.clamp_(_MINIMUM, self.largest_p)
        self.a.data.clamp_(min=_MINIMUM)
        return self.p[:, None], self.a[:, None]


class KerpleLog(_Kerple):
    """``q_i . k_j / sqrt(d) - p ln(1 + a (i - j))``, p and a per head (Chi et al. 2022, arXiv 2205.09921: r1, r2).

    p, a: initial values, each one number or a list with one per head; "uniform" draws p from U(0, 2), a from U(0, 1).
    Both are kept at 0.01 or above. Any length works.
    Parameters: 2 * heads, shared by all layers. Cost: O(T^2) per head, O(T) logarithms. Kernel: blocked (matrix bias).
    """

    def bias(self) -> MatrixBias:
        def of_distance(distance: Tensor) -> Tensor:
            p, a = self.in_domain()
            return -p * torch.log1p(a * distance)

        return MatrixBias(partial(by_distance, of_distance), (self.p, self.a))


class KerplePower(_Kerple):
    """``q_i . k_j / sqrt(d) - a (i - j)^p``, a and p <= 2 per head (Chi et al. 2022, arXiv 2205.09921: r1, r2).

    With p = 1 it is ALiBi with slope a. p, a: initial values, as in `KerpleLog`; p is kept between 0.01 and 2, a at
    0.01 or above. Any length works.
    Parameters: 2 * heads, shared by all layers. Cost: O(T^2) per head, O(T) powers. Kernel: blocked (matrix bias).
    """

    largest_p = 2.0

    def bias(self) -> MatrixBias:
        def of_distance(distance: Tensor) -> Tensor:
            p, a = self.in_domain()
            return -a * distance**p

        return MatrixBias(partial(by_distance, of_distance), (self.p, self.a))


def _per_head(name: str, value: float | list[float] | str, heads: int, largest: float) -> Tensor | None:
    """[heads], or None if they are to be drawn."""
    if value == "uniform":
        return None
    values = [float(v) for v in value] if isinstance(value, list) else [float(value)]
    if len(values) not in (1, heads):
        raise ConfigError(
            f"pos_encoding.{name} must be one number or {heads} (one per head), as in pos_encoding.{name}=1; "
            f"got a list of {len(values)}."
        )
    if not all(_MINIMUM <= v <= largest for v in values):
        domain = f"from {_MINIMUM} to {largest:g}" if largest < float("inf") else f"{_MINIMUM} or greater"
        raise ConfigError(f"pos_encoding.{name} must be {domain}, as in pos_encoding.{name}=1; got {value}.")
    return torch.tensor(values).expand(heads)
