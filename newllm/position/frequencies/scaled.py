"""The option `scaling` of rotary encodings: a kind of scaling with its options, applied to a spectrum."""

from collections.abc import Callable
from typing import Any

import numpy as np

from newllm.position.frequencies import scaling as rules
from newllm.position.frequencies.domain import above
from newllm.position.frequencies.named import choose

Scaling = str | dict[str, Any] | None  # a kind, or {kind: …, option: value}; None leaves the frequencies alone
Scaled = tuple[np.ndarray, float]  # inverse frequencies [K], and what cosines and sines are multiplied by


def scale(inv_freq: np.ndarray, scaling: Scaling, *, length: int, seq_len: int) -> Scaled:
    """`inv_freq` [K] scaled for inputs of `length` tokens, of a model trained at `seq_len`; and the temperature.

    scaling: the name of a kind, or a mapping of ``kind`` and its options, as in ``{kind: yarn, factor: 8}``.
    Every kind takes original_length, seq_len unless given. A factor left out follows the input:
    ``max(1, length / original_length)``, so inputs no longer than that see the frequencies of training.
    """
    if scaling is None:
        return np.asarray(inv_freq, dtype=np.float64), 1.0
    named = {"kind": scaling} if isinstance(scaling, str) else scaling
    rule, options = choose("scaling", "kind", {"original_length": seq_len, **named}, _KINDS, handed=2)
    above("scaling.original_length", options["original_length"], 1, 2048)
    return rule(inv_freq, length, **options)


def kinds() -> list[str]:
    """The names that `scaling` may have."""
    return list(_KINDS)


def _position_interpolation(
    inv_freq: np.ndarray, length: int, original_length: int, factor: float | None = None
) -> Scaled:
    return rules.position_interpolation(inv_freq, _factor(factor, length, original_length)), 1.0


def _ntk_aware(inv_freq: np.ndarray, length: int, original_length: int, factor: float | None = None) -> Scaled:
    return rules.ntk_spread(inv_freq, _factor(factor, length, original_length)), 1.0


def _dynamic_ntk(inv_freq: np.ndarray, length: int, original_length: int) -> Scaled:
    return rules.ntk_spread(inv_freq, _factor(None, length, original_length)), 1.0


def _dynamic_ntk_transformers(inv_freq: np.ndarray, length: int, original_length: int, factor: float) -> Scaled:
    return rules.ntk_spread(inv_freq, rules.transformers_stretch(factor, length, original_length)), 1.0


def _yarn(
    inv_freq: np.ndarray,
    length: int,
    original_length: int,
    factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
) -> Scaled:
    stretch = _factor(factor, length, original_length)
    temperature = _temperature(attention_factor, rules.yarn_temperature(stretch))
    return rules.yarn(inv_freq, stretch, original_length, beta_fast, beta_slow), temperature


def _yarn_channels(
    inv_freq: np.ndarray,
    length: int,
    original_length: int,
    factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
) -> Scaled:
    stretch = _factor(factor, length, original_length)
    temperature = _temperature(attention_factor, rules.yarn_temperature(stretch))
    return rules.yarn_channels(inv_freq, stretch, original_length, beta_fast, beta_slow, truncate), temperature


def _yarn_index_ramp(inv_freq: np.ndarray, length: int, original_length: int, factor: float | None = None) -> Scaled:
    return rules.yarn_index_ramp(inv_freq, _factor(factor, length, original_length)), 1.0


def _llama3(
    inv_freq: np.ndarray,
    length: int,
    original_length: int,
    factor: float | None = None,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> Scaled:
    stretch = _factor(factor, length, original_length)
    return rules.llama3(inv_freq, stretch, original_length, low_freq_factor, high_freq_factor), 1.0


def _longrope(
    inv_freq: np.ndarray,
    length: int,
    original_length: int,
    long: list[float],
    short: list[float] | None = None,
    factor: float | None = None,
    attention_factor: float | None = None,
) -> Scaled:
    """`long` beyond original_length, else `short` (all 1 unless given)."""
    temperature = rules.longrope_temperature(_factor(factor, length, original_length), original_length)
    stretched = [rules.longrope(inv_freq, factors) for factors in (long, short or [1.0] * len(inv_freq))]
    return stretched[0 if length > original_length else 1], _temperature(attention_factor, temperature)


def _proportional(
    inv_freq: np.ndarray, length: int, original_length: int, fraction: float, factor: float = 1.0
) -> Scaled:
    return rules.proportional(inv_freq, fraction, factor), 1.0


def _factor(factor: float | None, length: int, original_length: int) -> float:
    return max(1.0, length / original_length) if factor is None else factor


def _temperature(attention_factor: float | None, default: float) -> float:
    if attention_factor is None:
        return default
    above("attention_factor", attention_factor, 0, 1)
    return attention_factor


_KINDS: dict[str, Callable[..., Scaled]] = {
    "position_interpolation": _position_interpolation,
    "ntk_aware": _ntk_aware,
    "dynamic_ntk": _dynamic_ntk,
    "dynamic_ntk_transformers": _dynamic_ntk_transformers,
    "yarn": _yarn,
    "yarn_channels": _yarn_channels,
    "yarn_index_ramp": _yarn_index_ramp,
    "llama3": _llama3,
    "longrope": _longrope,
    "proportional": _proportional,
}
