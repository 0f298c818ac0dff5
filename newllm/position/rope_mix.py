"""Rotary embedding with a mix of any two families of frequencies."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from newllm.position import frequencies as functions
from newllm.position.frequencies.named import choose
from newllm.position.frequencies.scaled import Scaling
from newllm.position.rotary import Layout, Rotary

_FAMILIES: Mapping[str, Callable[..., np.ndarray]] = {
    "geometric": functions.geometric,
    "sigmoid": functions.sigmoid,
    "anchored_polynomial": functions.anchored_polynomial,
    "hybrid": functions.hybrid,
    "evq_cosh": functions.evq_cosh,
    "evq_split": functions.evq_split,
    "normalised_sigmoid": functions.normalised_sigmoid,
    "anchored_sigmoid": functions.anchored_sigmoid,
    "anchored_hybrid": functions.anchored_hybrid,
}


class RopeMix(Rotary):
    """Rotary, with ``w = (1 - alpha) a + alpha b``, a linear mix of two families' frequencies (`frequencies.mix`).

    a, b: the name of a family, or ``{family: NAME, option: value, …}`` with the options of the function of that name in
    newllm.position.frequencies. alpha=0 is a alone, alpha=1 is b. The published mix_sig8t10k_geo500k_aX (unified search
    of hybrid-rope, 2026) has the geometric series of 500k as a, the sigmoid of 10k as b, alpha=X.
    The other options, cost, kernel: `Rotary`.
    """

    def __init__(
        self,
        a: str | dict[str, Any],
        b: str | dict[str, Any],
        alpha: float = 0.5,
        rotary_pct: float = 1.0,
        layout: Layout = "half",
        layers: str | list[int] = "all",
        scaling: Scaling = None,
        *,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        first, second = (_family(name, given) for name, given in (("a", a), ("b", b)))

        def frequencies(width: int) -> np.ndarray:
            return functions.mix(first(width), second(width), alpha)

        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(frequencies, rotary_pct, layout, layers, scaling, **sizes)


def _family(where: str, given: str | dict[str, Any]) -> Callable[[int], np.ndarray]:
    family, options = choose(where, "family", given, _FAMILIES, handed=1)
    return lambda width: family(width, **options)
