"""What a perplexity says about the run that gave it."""

import math
import sys
from collections.abc import Mapping

# Upper bounds for tokenizers of about 50k entries, which have 4.4 bytes of English text in a token. The last has none.
VERDICTS: dict[str, float | None] = {
    "leak or mask bug": 5,
    "suspicious": 30,
    "normal on little data": 100,
    "normal from scratch": 500,
    "high": 1000,
    "undertrained": None,
}
BYTES_PER_TOKEN = 4.4


def rescale(ppl: float, bytes_per_token: float, reference: float = BYTES_PER_TOKEN) -> float:
    """The perplexity that the same bits per byte give under a tokenizer of `reference` bytes per token.

    Bits per byte b = log2(ppl) / bytes_per_token compares across tokenizers, perplexity does not: at b = 1.5,
    a token of 4.4 bytes has perplexity 97 and a token of 3 bytes 23.
    """
    try:
        return ppl ** (reference / bytes_per_token)
    except OverflowError:
        return sys.float_info.max


def diagnose(
    ppl: float,
    bytes_per_token: float,
    verdicts: Mapping[str, float | None] = VERDICTS,
    reference: float = BYTES_PER_TOKEN,
) -> str:
    """The verdict on a perplexity whose tokens stand for `bytes_per_token` bytes of text on average.

    `verdicts` gives the upper bound (exclusive, None for none) of each verdict at `reference` bytes per token, in
    any order; the bounds are compared with the perplexity rescaled to that, so a small vocabulary is not mistaken
    for a leak.
    """
    if not math.isfinite(ppl):
        return "diverged"
    scaled = rescale(ppl, bytes_per_token, reference)
    bounds = {verdict: math.inf if bound is None else bound for verdict, bound in verdicts.items()}
    above = [verdict for verdict in sorted(bounds, key=bounds.__getitem__) if scaled < bounds[verdict]]
    return above[0] if above else f"above {max(bounds.values(), default=0):g}"
