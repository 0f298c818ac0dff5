"""EVQ-Cosh: frequencies at the quantiles of a density that falls with the wavelength as a hyperbolic cosine."""

from typing import Literal

import numpy as np

from newllm.checks import above, within
from newllm.errors import ConfigError
from newllm.position.frequencies.families import channels

Grid = Literal["midpoint", "endpoint", "closed"]
SERIES_BELOW = 1e-4  # tau below which the series is exact and the closed form would divide rounding errors by tau
LARGEST_TAU = 100.0  # sinh(tau) is still far below the largest float64


def evq_cosh(
    dim: int,
    theta: float,
    tau: float | None = None,
    grid: Grid = "midpoint",
    *,
    head_dim: int | None = None,
    seq_len: int | None = None,
) -> np.ndarray:
    """``w_k = theta ** -phi(u_k)``, ``phi(u) = 1 - asinh((1 - u) sinh tau) / tau`` (hybrid-rope, EVQ). Returns [K].

    phi are the quantiles of the density ``tau cosh(tau (1 - phi)) / sinh tau`` on the logarithmic axis from 1 (phi = 0)
    to 1 / theta (phi = 1); tau = 0 is uniform: the geometric series on that grid. A larger tau gives more channels
    short wavelengths.

    tau: None applies the rule `optimal_tau` to head_dim and seq_len, which have no other use.
    grid: u_k is (k + 1/2) / K "midpoint", k / K "endpoint" (keeps w_0 = 1), or k / (K-1) "closed" (reaches 1 / theta).
    """
    above("theta", theta, 0, 500000)
    return theta ** -warp(grid_points(channels(dim), grid), _tau(tau, head_dim, seq_len))


def evq_split(
    dim: int,
    theta: float,
    tau: float | None = None,
    kept: int | None = None,
    *,
    head_dim: int | None = None,
    seq_len: int | None = None,
) -> np.ndarray:
    """The first `kept` channels of the midpoint geometric series g, the others EVQ-Cosh between its ends. Returns [K].

    Channel kept + i of the n = K - kept others has ``g[K-1] ** phi * g[kept] ** (1 - phi)``, phi = phi(i / (n-1)) as in
    `evq_cosh` (the "r-split" of hybrid-rope, one of four things called hybrid there). Both kept = K and tau = 0 give
    the series g itself. kept: None means half of the channels. tau: None applies the rule, as in `evq_cosh`.
    """
    count = channels(dim)
    kept = count // 2 if kept is None else kept
    within("kept", kept, 0, count, count // 2)
    start = evq_cosh(dim, theta, 0.0, "midpoint")
    if kept == count:
        return start
    phi = warp(grid_points(count - kept, "closed"), _tau(tau, head_dim, seq_len))
    return np.concatenate([start[:kept], start[-1] ** phi * start[kept] ** (1 - phi)])


def optimal_tau(head_dim: int, length: int, theta: float | None = None) -> float:
    """The rule for tau: ``head_dim / sqrt(length)``, with the width of a head and the length of training rows.

    theta: if given, the refined rule is used, which multiplies this by ``sqrt(45 Q)``, where
    ``Q = integral over phi in [0, 1] of ((1 - phi)^2 / 2 - 1/6) q(length * theta ** -phi)`` and
    ``q(x) = 1/2 + sin(2x) / (4x) - (sin(x) / x)^2`` (hybrid-rope, EVQ).
    """
    above("head_dim", head_dim, 0, 64)
    above("length", length, 0, 2048)
    rule = head_dim / float(np.sqrt(length))
    if theta is None:
        return rule
    above("theta", theta, 1, 500000)
    points = int(16 * length * np.log(theta)) + 4096  # the shortest period of sin(2x), at phi = 0, is pi / (L ln theta)
    phi = (np.arange(points) + 0.5) / points
    x = length * theta**-phi
    q = 0.5 + np.sin(2 * x) / (4 * x) - (np.sin(x) / x) ** 2
    return rule * float(np.sqrt(45 * np.mean(((1 - phi) ** 2 / 2 - 1 / 6) * q)))


def _tau(tau: float | None, head_dim: int | None, seq_len: int | None) -> float:
    if tau is not None:
        return tau
    if head_dim is None or seq_len is None:
        raise ConfigError("tau is missing, as in tau=1.5; its rule needs head_dim and seq_len.")
    return optimal_tau(head_dim, seq_len)


def grid_points(count: int, grid: Grid) -> np.ndarray:
    """u_k of the K = `count` channels. Returns float64 [K]."""
    k = np.arange(count, dtype=np.float64)
    if grid == "midpoint":
        return (k + 0.5) / count
    return k / count if grid == "endpoint" else k / max(1, count - 1)


def warp(u: np.ndarray, tau: float) -> np.ndarray:
    """phi(u) of `evq_cosh`; for tau near 0 its series ``u - tau^2 / 6 * (1 - u) (1 - (1 - u)^2)``."""
    within("tau", tau, 0, LARGEST_TAU, 1.5)
    rest = 1 - u
    if tau < SERIES_BELOW:
        return u - tau**2 / 6 * rest * (1 - rest**2)
    return 1 - np.arcsinh(rest * np.sinh(tau)) / tau
