"""What the name of a metric tells: the scale to compare it on, and which direction is better."""

import re
from typing import Literal

Scale = Literal["log", "difference"]

# The first pattern that matches counts. Lower is better: True; higher: False; neither: None.
_DIRECTIONS: list[tuple[str, bool | None]] = [
    (r"^baseline/", None),
    (r"(^|[/_@])ppl($|[/_@])", True),
    (r"bits_per_byte$|/loss$", True),
    (r"accuracy(@\d+)?$|^reversal/.*_margin$|^reversal/ratio$", False),
    (r"^(passkey|distance)/(margin|exact)@|^ruler/", False),
    (r"^reversal/gap$", True),
    (r"^kv_cache/(bytes_per_token|max_logit_error)$|^memory/|^speed/.*seconds$", True),
    (r"^kv_cache/reduction$|^speed/.*_per_second$", False),
]
# Positive quantities that are compared by ratio.
_RATIOS = r"(^|[/_@])ppl($|[/_@])|^reversal/ratio$|bytes_per_token$|_bytes$|^speed/|^params/|^data/\w+_(tokens|rows)$"


def scale_of(metric: str) -> Scale:
    """ "log" for perplexities and other positive quantities that are compared by ratio, else "difference".

    Losses and bits per byte are logarithms already, so their differences are taken as they are.
    """
    return "log" if re.search(_RATIOS, metric) else "difference"


def lower_is_better(metric: str) -> bool | None:
    """True, False, or None where neither direction is better (statistics of queries, ranks, counts)."""
    return next((way for pattern, way in _DIRECTIONS if re.search(pattern, metric)), None)
