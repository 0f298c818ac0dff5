"""Families of inverse frequencies to train a model with, one function each."""

import numpy as np

from newllm.checks import above, within
from newllm.errors import ConfigError


def channels(dim: int) -> int:
    """K = dim / 2. Raises ConfigError unless that is a whole number above 0."""
    if dim <= 0 or dim % 2:
        raise ConfigError(f"the number of rotary dims must be even and greater than 0, as in dim=64; got {dim}.")
    return dim // 2


def geometric(dim: int, theta: float = 10000.0) -> np.ndarray:
    """``w_k = theta ** (-k / K)``, k = 0 .. K-1: RoPE (Su et al. 2021, arXiv 2104.09864). Returns float64 [K].

    So w_0 = 1, and the last is theta ** (-(K-1)/K), not 1 / theta.
    """
    count = channels(dim)
    above("theta", theta, 0, 10000)
    return theta ** (-np.arange(count, dtype=np.float64) / count)


def sigmoid(
    dim: int, theta: float = 10000.0, steepness: float = 8.0, midpoint: float = 0.5, omf: float = 0.3
) -> np.ndarray:
    """``ln w_k = S_k ln w_min``, ``S_k = 1 / (1 + exp(-steepness (t_k - midpoint)))``, ``t_k = k / (K-1)``.

    ``w_min = omf * theta ** (-(K-1)/K)``: omf multiplies the lowest geometric frequency. S reaches neither 0 nor 1, so
    the spectrum lies inside (w_min, 1). Unified search of the hybrid-rope repository, February 2026. Returns [K].
    """
    above("steepness", steepness, 0, 8)
    s = 1 / (1 + np.exp(-steepness * (_unit(channels(dim)) - midpoint)))
    return np.exp(s * _ln_lowest(dim, theta, omf))


def anchored_polynomial(dim: int, theta: float = 10000.0, p: float = 3.9, omf: float = 0.3) -> np.ndarray:
    """``ln w_k = t_k ** p * ln w_min``, t_k and w_min as in `sigmoid`: from 1 to w_min, both reached. Returns [K].

    p = 1 is geometric between these ends; a larger p keeps more channels near 1. Source as `sigmoid`.
    """
    above("p", p, 0, 3.9)
    return np.exp(_unit(channels(dim)) ** p * _ln_lowest(dim, theta, omf))


def mix(a: np.ndarray, b: np.ndarray, alpha: float) -> np.ndarray:
    """``(1 - alpha) a + alpha b``: mixes the frequencies, not their logarithms. Returns [K]."""
    within("alpha", alpha, 0, 1, 0.2)
    if len(a) != len(b):
        raise ConfigError(f"the two spectra of a mix must have one length; got {len(a)} and {len(b)} frequencies.")
    return (1 - alpha) * np.asarray(a, dtype=np.float64) + alpha * np.asarray(b, dtype=np.float64)


def hybrid(dim: int, theta: float, alpha: float, p: float = 3.9, omf: float = 0.3) -> np.ndarray:
    """``mix(geometric(theta), anchored_polynomial(theta, p, omf), alpha)``. Returns [K].

    In the middle channels, where the polynomial is far above the geometric series, the mix is about alpha times the
    polynomial; so it raises the middle of the spectrum. Source as `sigmoid`.
    """
    return mix(geometric(dim, theta), anchored_polynomial(dim, theta, p, omf), alpha)


def highest(dim: int, theta: float = 10000.0, fraction: float = 0.75) -> np.ndarray:
    """p-RoPE: the first ``int(fraction K)`` channels of the `geometric` series; the others are 0. Returns [K].

    A channel with frequency 0 does not depend on distance (Barbero et al. 2024, "Round and Round We Go!", arXiv
    2410.06205). fraction: 1 is RoPE, 0 is NoPE; the paper's best is 0.75. It differs from rotary_pct, which keeps the
    whole spectrum, lowest frequencies included, in fewer dims; this cuts off the slow end. transformers calls it the
    "proportional" RoPE of Gemma 4.
    """
    count = channels(dim)
    within("fraction", fraction, 0, 1, 0.75)
    kept = int(fraction * count)
    if fraction and not kept:
        raise ConfigError(
            f"fraction={fraction:g} leaves none of the {count} pairs a frequency; "
            f"type fraction={1 / count:g} or more, or fraction=0 if no pair should rotate."
        )
    return np.where(np.arange(count) < kept, geometric(dim, theta), 0.0)


def whole_turns(dim: int, theta: float = 10000.0, *, seq_len: int) -> np.ndarray:
    """The `geometric` series, 0 for channels without a full turn in seq_len tokens (FoPE, arXiv 2412.17739). [K]."""
    waves = geometric(dim, theta)
    return np.where(waves >= 2 * np.pi / seq_len, waves, 0.0)


def listed(dim: int, inv_freq: list[float]) -> np.ndarray:
    """A list of frequencies: dim / 2 numbers above 0. Returns float64 [K]."""
    count = channels(dim)
    if len(inv_freq) != count:
        raise ConfigError(
            f"inv_freq must hold {count} numbers, one for each pair of {dim} rotary dims; got {len(inv_freq)}."
        )
    for k, value in enumerate(inv_freq):
        if not 0 < value < np.inf:
            raise ConfigError(f"inv_freq must hold numbers greater than 0, as in 0.001; entry {k} is {value:g}.")
    return np.array(inv_freq, dtype=np.float64)


def _unit(count: int) -> np.ndarray:
    """k / (K-1), from 0 to 1; 0 for a single channel."""
    return np.arange(count, dtype=np.float64) / max(1, count - 1)


def _ln_lowest(dim: int, theta: float, omf: float) -> float:
    above("omf", omf, 0, 0.3)
    return float(np.log(omf * geometric(dim, theta)[-1]))
