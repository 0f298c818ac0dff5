"""A judgement of a model by its bits per byte, which compare across tokenizers as perplexities do not."""

import math
from collections.abc import Mapping

# Fewer bits per byte than the best published language models need for new text (about 0.5 for English, 0.3 for code).
SUSPICIOUS = 0.25
EVEN = 0.01  # relative difference below which two models are about as good


def judge(results: Mapping[str, float]) -> str:
    """One line on `val/bits_per_byte` beside `baseline/trigram_bits_per_byte` and `baseline/unigram_bits_per_byte`, as
    far as these are among the results; empty without the first."""
    bits = results.get("val/bits_per_byte")
    if "val/bits_per_byte" not in results:
        return ""
    if bits is None or not math.isfinite(bits):
        return "The validation loss is not finite: training has diverged."
    trigram, unigram = (results.get(f"baseline/{name}_bits_per_byte") for name in ("trigram", "unigram"))
    comparisons = []
    if trigram is not None:
        comparisons.append(f"{_compared(bits, trigram)} a trigram model of the same training text ({trigram:.3f})")
    if unigram is not None:
        comparisons.append(f"{_compared(bits, unigram)} the bare frequencies of its tokens ({unigram:.3f})")
    line = f"{bits:.3f} bits per byte" + (f": {', '.join(comparisons)}" if comparisons else "")
    if bits < SUSPICIOUS:
        return (
            f"{line}. So few are suspicious: does the validation text repeat itself or the training text, or does a "
            "mask show the model the next token?"
        )
    if unigram is not None and bits > (1 - EVEN) * unigram:
        return f"{line}. It has hardly learnt anything yet."
    return f"{line}."


def _compared(bits: float, other: float) -> str:
    if abs(bits - other) <= EVEN * other:
        return "about as good as"
    return "better than" if bits < other else "worse than"
