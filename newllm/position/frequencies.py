"""Inverse frequencies of rotary encodings, as plain float64 functions.

A rotary encoding turns the pair of coordinates k by the angle ``position * inv_freq[k]``; the wavelength of the
pair, in tokens, is ``2 * pi / inv_freq[k]``.
"""

import numpy as np


def geometric(dim: int, theta: float = 10000.0) -> np.ndarray:
    """``theta ** (-2k / dim)`` for k = 0 .. dim/2 - 1: the frequencies of RoPE (Su et al. 2021, arXiv 2104.09864).

    dim: number of rotary dims (not the head's width when only a part of it rotates). Returns float64 [dim / 2].
    """
    return theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
