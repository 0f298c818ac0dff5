"""Rotary embedding with EVQ-Cosh frequencies, whose parameter tau can be learned."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.checks import above
from newllm.errors import ConfigError
from newllm.position.frequencies import optimal_tau
from newllm.position.frequencies.evq import SERIES_BELOW, grid_points
from newllm.position.frequencies.nodes import Node, scale
from newllm.position.rope import Layout, Rope


class RopeEvq(Rope):
    """RoPE with ``w_k = theta ** -phi_k``, ``phi_k = 1 - asinh((1 - u_k) sinh tau) / tau`` (`frequencies.evq_cosh`).

    EVQ-Cosh of hybrid-rope, 2026. frequencies: {family: evq_cosh, tau: …, grid: …}; tau: None applies the rule
    `frequencies.optimal_tau`, head_dim / sqrt(seq_len) (on attention=mla, the rotary key's width / sqrt(seq_len)).
    learn: adds one parameter psi, with ``tau = softplus(psi)`` in every forward pass. It starts at tau, its learning
    rate is tau_rate times that of the others, and it has no weight decay. A scaling is then applied to the frequencies
    of the current tau, as a factor without gradient. For the other options, cost and kernel see `Rope`.
    """

    length: Tensor  # input length in tokens that the scaling is set for

    def __init__(
        self,
        theta: float = 500000.0,
        frequencies: Node = "evq_cosh",
        learn: bool = False,
        tau_rate: float = 10.0,
        rotary_pct: float = 1.0,
        layout: Layout = "half",
        layers: str | list[int] = "all",
        scaling: Node | None = None,
        *,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(theta, frequencies, rotary_pct, layout, layers, scaling, **sizes)
        above("tau_rate", tau_rate, 0, 10)
        options: dict[str, Any] = {"family": frequencies} if isinstance(frequencies, str) else frequencies
        if options["family"] != "evq_cosh":
            raise ConfigError(
                f"rope_evq learns the tau of family evq_cosh; type pos_encoding=rope for family {options['family']}."
            )
        self.psi: nn.Parameter | None = None
        if learn:
            tau = options.get("tau")
            tau = optimal_tau(head_dim, seq_len) if tau is None else tau
            above("a learned tau", tau, 0, 1)
            self.psi = nn.Parameter(torch.tensor(math.log(math.expm1(tau))))
            self.rate_factors = {"psi": tau_rate}  # read by newllm.training.optimizer
            self.ln_theta = math.log(options.get("theta", theta))
            u = grid_points(self.width // 2, options.get("grid", "midpoint"))
            self.register_buffer("u", torch.tensor(u), persistent=False)
            self.register_buffer("length", torch.tensor(seq_len), persistent=False)
        self.u: Tensor

    def adapt(self, length: int) -> None:
        super().adapt(length)
        if self.psi is not None:
            self.length.fill_(length)

    def current_inv_freq(self) -> Tensor:
        if self.psi is None:
            return super().current_inv_freq()
        inv_freq = torch.exp(-self.ln_theta * _warp(self.u.double(), F.softplus(self.psi.double())))
        if self.scaling is not None:
            unscaled = inv_freq.detach().cpu().numpy()
            scaled, _ = scale(unscaled, self.scaling, length=int(self.length), seq_len=self.seq_len)
            inv_freq = inv_freq * torch.tensor(scaled / unscaled, device=inv_freq.device)
        return inv_freq.float()


def _warp(u: Tensor, tau: Tensor) -> Tensor:
    """`frequencies.evq.warp`, also differentiable at tau = 0."""
    rest = 1 - u
    use_series = tau < SERIES_BELOW
    safe = torch.where(use_series, 1.0, tau)  # the unused branch and its gradient must not divide by 0
    series = u - tau**2 / 6 * rest * (1 - rest**2)
    return torch.where(use_series, series, 1 - torch.asinh(rest * torch.sinh(safe)) / safe)
