"""Properties of a spectrum of frequencies, computed without training."""

import numpy as np

from newllm.errors import ConfigError

_BANDS = {"short": (1, 5, 10, 50, 100), "mid": (500, 1000, 5000), "long": (10000,)}  # distances in tokens
_WEIGHTS = {"short": 0.2, "mid": 0.3, "long": 0.5}


def wavelengths(inv_freq: np.ndarray) -> np.ndarray:
    """``2 pi / w_k`` in tokens; infinite for a frequency of 0. [K] -> [K]."""
    with np.errstate(divide="ignore"):
        return 2 * np.pi / np.asarray(inv_freq, dtype=np.float64)


def channels_longer_than(inv_freq: np.ndarray, length: int) -> int:
    """How many channels make less than one full turn in `length` tokens: their later phases are never trained."""
    return int((wavelengths(inv_freq) > length).sum())


def phase_collision(inv_freq: np.ndarray) -> dict[str, float]:
    """``c(D) = mean_k cos(w_k D)``, how similar two positions D apart look, averaged over bands of distances.

    short: D = 1, 5, 10, 50, 100; mid: 500, 1000, 5000; long: 10000; total = 0.2 short + 0.3 mid + 0.5 long
    (`run_evq_sweep.py` of hybrid-rope). It describes a spectrum and predicts nothing: the long band is a single
    distance, and the score does not rank published perplexities.
    """
    bands = {name: float(np.cos(np.outer(distances, inv_freq)).mean()) for name, distances in _BANDS.items()}
    return {**bands, "total": sum(_WEIGHTS[name] * score for name, score in bands.items())}


def rotary_dims(head_dim: int, rotary_pct: float) -> int:
    """How many dims of a head rotate. Raises ConfigError unless that is an even number above 0."""
    width = int(head_dim * rotary_pct)
    if not 0 < rotary_pct <= 1 or width == 0 or width % 2:
        raise ConfigError(
            f"rotary_pct must lie in (0, 1] and give an even number of rotary dims of the {head_dim} there are, "
            f"as rotary_pct={2 * max(1, head_dim // 8) / head_dim:g} does; "
            f"{rotary_pct:g} gives {head_dim * rotary_pct:g}."
        )
    return width
