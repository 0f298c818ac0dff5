"""Verdicts on perplexities."""

import math
import sys
from collections.abc import Mapping
from typing import Any

# Upper bounds for tokenizers of about 50k entries, with 4.4 bytes of English text per token. None: no bound.
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
    """The perplexity of the same bits per byte under a tokenizer with `reference` bytes per token.

    Bits per byte b = log2(ppl) / bytes_per_token is comparable across tokenizers, perplexity is not: at b = 1.5, a
    tokenizer with 4.4 bytes per token has perplexity 97, one with 3 bytes per token has 23.
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
    """The verdict on a perplexity, given the average `bytes_per_token` of the text.

    `verdicts` gives the exclusive upper bound (None: no bound) of each verdict at `reference` bytes per token, in any
    order. The perplexity is rescaled before the comparison, so a small vocabulary is not mistaken for a leak.
    """
    if not math.isfinite(ppl):
        return "diverged"
    scaled = rescale(ppl, bytes_per_token, reference)
    bounds = {verdict: math.inf if bound is None else bound for verdict, bound in verdicts.items()}
    above = [verdict for verdict in sorted(bounds, key=bounds.__getitem__) if scaled < bounds[verdict]]
    return above[0] if above else f"above {max(bounds.values(), default=0):g}"


def judge(evaluators: Mapping[str, Any], bytes_per_token: float, ppl: float) -> str:
    """The verdict on a perplexity by the table of eval.loss, if that is among the evaluators' nodes, or by default."""
    node = evaluators.get("loss") or {}
    return diagnose(ppl, bytes_per_token, **{key: node[key] for key in ("verdicts", "reference") if key in node})
