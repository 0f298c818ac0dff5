"""Inference-time scalings: a trained model's inverse frequencies, stretched for inputs `factor` times as long.

Each takes frequencies [K] of any family and returns float64 [K]; a factor of 1 leaves them unchanged, to the last bit.
Some papers also sharpen attention: their temperature multiplies cosines and sines, so scores by its square.
"""

import math
from collections.abc import Sequence

import numpy as np

from newllm.checks import above, at_least, within
from newllm.errors import ConfigError
from newllm.position.frequencies.families import geometric


def position_interpolation(inv_freq: np.ndarray, factor: float) -> np.ndarray:
    """``w / factor`` (Chen et al. 2023, arXiv 2306.15595; "linear" in transformers)."""
    at_least("factor", factor, 1, 8)
    return np.asarray(inv_freq, dtype=np.float64) / factor


def ntk_aware(dim: int, theta: float, factor: float) -> np.ndarray:
    """The geometric series of the base ``theta * factor ** (dim / (dim - 2))`` (bloc97, 2023; arXiv 2309.00071, §3.1).

    The first frequency is unchanged, the last is divided by factor.
    """
    return ntk_spread(geometric(dim, theta), factor)


def ntk_spread(inv_freq: np.ndarray, factor: float) -> np.ndarray:
    """``w_k * factor ** (-k / (K-1))``: `ntk_aware` for any family; equal to it for the geometric one."""
    at_least("factor", factor, 1, 8)
    count = len(inv_freq)
    if count < 2:
        raise ConfigError("NTK-aware scaling needs 4 or more rotary dims; got 2: raise rotary_pct or the head's width.")
    return np.asarray(inv_freq, dtype=np.float64) * factor ** (-np.arange(count) / (count - 1))


def dynamic_ntk(inv_freq: np.ndarray, length: int, original_length: int) -> np.ndarray:
    """`ntk_spread` with ``factor = max(1, length / original_length)``, where length is that of the input."""
    return ntk_spread(inv_freq, max(1.0, length / original_length))


def dynamic_ntk_transformers(inv_freq: np.ndarray, factor: float, length: int, original_length: int) -> np.ndarray:
    """`ntk_spread` with ``factor * L / L0 - (factor - 1)`` for L > L0, else 1 ("dynamic" in transformers; emozilla).

    Equal to `dynamic_ntk` only for a factor of 1.
    """
    at_least("factor", factor, 1, 8)
    return ntk_spread(inv_freq, factor * max(length, original_length) / original_length - (factor - 1))


def yarn(
    inv_freq: np.ndarray, factor: float, original_length: int, beta_fast: float = 32.0, beta_slow: float = 1.0
) -> np.ndarray:
    """``w (g + (1 - g) / factor)`` (Peng et al. 2023, arXiv 2309.00071, definition 2: "NTK by parts").

    ``g = clip((rho - beta_slow) / (beta_fast - beta_slow), 0, 1)`` with rho = original_length * w / 2 pi, the full
    turns of a channel in training: fast channels are unchanged, slow ones are interpolated.
    """
    above("beta_fast", beta_fast, beta_slow, 32)
    rotations = original_length * np.asarray(inv_freq, dtype=np.float64) / (2 * np.pi)
    return _blend(inv_freq, factor, 1 - np.clip((rotations - beta_slow) / (beta_fast - beta_slow), 0, 1))


def yarn_channels(
    inv_freq: np.ndarray,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> np.ndarray:
    """YaRN as in its authors' code and transformers: the ramp is linear in the channel, not in its rotations.

    It runs from the channel that makes beta_fast turns in original_length tokens to the one that makes beta_slow; with
    `truncate` these are rounded outwards. Fractional channels are found by interpolating ln w, which is exact for the
    geometric family, whose closed form the original uses; outside the spectrum ln w is extrapolated by its mean step.
    """
    above("beta_fast", beta_fast, beta_slow, 32)
    count = len(inv_freq)
    low, high = (_channel(inv_freq, turns, original_length) for turns in (beta_fast, beta_slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * count - 1)
    if low == high:
        high += 0.001  # as the original does
    return _blend(inv_freq, factor, np.clip((np.arange(count) - low) / (high - low), 0, 1))


def yarn_temperature(factor: float) -> float:
    """``0.1 ln(factor) + 1`` (arXiv 2309.00071, equation 22), for cosines and sines of `yarn` and `yarn_channels`."""
    at_least("factor", factor, 1, 8)
    return 0.1 * math.log(factor) + 1


def yarn_index_ramp(inv_freq: np.ndarray, factor: float) -> np.ndarray:
    """``w / (factor ** r * T ** (r / 2))``, ``T = 1 + 0.07 log2(factor)``: hybrid-rope's "YaRN", not the paper's.

    ``r = x^2 (3 - 2x)``, x rising from 0 at channel int(0.2 K) to 1 at int(0.9 K): it depends on the channel's index,
    not its wavelength, and its temperature scales the frequencies, not attention.
    """
    at_least("factor", factor, 1, 8)
    count = len(inv_freq)
    first, last = int(0.2 * count), int(0.9 * count)
    x = np.clip((np.arange(count) - first) / max(1, last - first), 0, 1)
    ramp = x**2 * (3 - 2 * x)
    temperature = 1 + 0.07 * math.log2(factor)
    return np.asarray(inv_freq, dtype=np.float64) / (factor**ramp * temperature ** (ramp / 2))


def llama3(
    inv_freq: np.ndarray,
    factor: float,
    original_length: int,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> np.ndarray:
    """Llama 3.1's: wavelengths above L0 / low_freq_factor are stretched, those below L0 / high_freq_factor kept.

    Between them ``w (s + (1 - s) / factor)``, ``s = (L0 / wavelength - low) / (high - low)`` (Meta's llama-models).
    """
    above("high_freq_factor", high_freq_factor, low_freq_factor, 4)
    rotations = original_length * np.asarray(inv_freq, dtype=np.float64) / (2 * np.pi)
    smooth = np.clip((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return _blend(inv_freq, factor, 1 - smooth)


def longrope(inv_freq: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """``w_k / factors[k]`` (Ding et al. 2024, arXiv 2402.13753); the factors come from a search done elsewhere."""
    if len(factors) != len(inv_freq):
        raise ConfigError(
            f"longrope needs {len(inv_freq)} factors, one for each pair of rotary dims; got {len(factors)}."
        )
    for k, value in enumerate(factors):
        above(f"longrope's factor {k}", value, 0, 1)
    return np.asarray(inv_freq, dtype=np.float64) / np.asarray(factors, dtype=np.float64)


def longrope_temperature(factor: float, original_length: int) -> float:
    """``sqrt(1 + ln(factor) / ln(original_length))`` (arXiv 2402.13753)."""
    at_least("factor", factor, 1, 8)
    return math.sqrt(1 + math.log(factor) / math.log(original_length))


def proportional(inv_freq: np.ndarray, fraction: float, factor: float = 1.0) -> np.ndarray:
    """The first ``int(fraction * K)`` frequencies, the others 0; all divided by factor (transformers, Gemma's).

    Unlike rotary_pct, which gives a part of the head its own spectrum, the remaining pairs keep the frequencies of
    the whole head.
    """
    within("fraction", fraction, 0, 1, 0.25)
    kept = int(fraction * 2 * len(inv_freq) // 2)
    return np.where(np.arange(len(inv_freq)) < kept, position_interpolation(inv_freq, factor), 0.0)


def _blend(inv_freq: np.ndarray, factor: float, interpolated: np.ndarray) -> np.ndarray:
    """``w / factor`` where `interpolated` is 1, w where it is 0; this form gives exactly w for a factor of 1."""
    at_least("factor", factor, 1, 8)
    return np.asarray(inv_freq, dtype=np.float64) * (1 - interpolated * (1 - 1 / factor))


def _channel(inv_freq: np.ndarray, rotations: float, length: int) -> float:
    """The (fractional) channel that makes `rotations` full turns in `length` tokens.

    Ignores channels with frequency 0.
    """
    positive = np.asarray(inv_freq, dtype=np.float64)[np.asarray(inv_freq) > 0]
    depth = -np.log(positive)  # rises with the channel
    if len(depth) < 2 or not (np.diff(depth) > 0).all():
        raise ConfigError("yarn_channels needs two or more frequencies that fall from channel to channel; try yarn.")
    wanted = math.log(length / (2 * math.pi * rotations))
    step = (depth[-1] - depth[0]) / (len(depth) - 1)
    beyond = min(0.0, wanted - depth[0]) + max(0.0, wanted - depth[-1])
    return float(np.interp(wanted, depth, np.arange(len(depth))) + beyond / step)
