"""Three later families of hybrid-rope (`schedules.py`), which it fine-tuned 7B and 8B models with."""

import numpy as np

from newllm.checks import at_least
from newllm.position.frequencies import geometric
from newllm.position.frequencies.families import channels

_SLOPE = 16.05  # of the logistic curve, divided by the number of rotary dims
_CENTRE = 0.47  # of that curve, as a share of the channels
_KEPT = 12  # channels that anchored_hybrid leaves geometric


def normalised_sigmoid(dim: int, theta: float = 500000.0) -> np.ndarray:
    """``w_k = theta ** -s_k``, s the logistic curve in k brought to run from 0 to 1: so from 1 to 1 / theta. [K].

    Unlike `sigmoid` it has no parameters of shape, and it reaches both ends.
    """
    curve = _curve(dim)
    return theta ** -((curve - curve[0]) / (curve[-1] - curve[0]))


def anchored_sigmoid(dim: int, theta: float = 500000.0, anchor: float = 5.0) -> np.ndarray:
    """``geometric / (1 + (anchor - 1) s_k)``, s the logistic curve in k: the slowest are divided by nearly anchor. [K].

    Published as ``anchor = clip(2.5 scale, 2, 30)`` for contexts `scale` times 8192, and there also called hybrid.
    """
    at_least("anchor", anchor, 1, 5)
    return geometric(dim, theta) / (1 + (anchor - 1) * _curve(dim))


def anchored_hybrid(dim: int, theta: float = 500000.0, scale: float = 2.0) -> np.ndarray:
    """Twelve geometric channels, then a blend towards the geometric series of ``max(theta scale^2, 4 theta)``. [K].

    The other series' share rises over the remaining channels as ``s (1 - cos(pi t)) / 2``, t from 0 to 1, to
    ``s = min(0.4, max(0.08, 0.16 log2 scale))``, for contexts `scale` times as long as 8192 tokens.
    """
    at_least("scale", scale, 1, 2)
    start, count = geometric(dim, theta), channels(dim)
    t = np.clip((np.arange(count) - _KEPT) / max(1, count - 1 - _KEPT), 0, 1)
    share = min(0.4, max(0.08, 0.16 * float(np.log2(scale)))) * (1 - np.cos(np.pi * t)) / 2
    return (1 - share) * start + share * geometric(dim, max(theta * scale**2, 4 * theta))


def _curve(dim: int) -> np.ndarray:
    count = channels(dim)
    return 1 / (1 + np.exp(-_SLOPE / dim * (np.arange(count) - _CENTRE * count)))
