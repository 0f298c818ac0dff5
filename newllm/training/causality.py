"""Causality check before training: changing token t must not change an output before t.

A transposed mask once gave a perplexity of 1.5 that looked like a success, so every run checks its own model on its
own text, in its own precision, before the first step.
"""

import torch
from torch import Tensor

from newllm.errors import RunError
from newllm.model import LanguageModel
from newllm.precision import Precision, autocast

# Largest change before t that counts as rounding, as a share of the change after t.
TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 1e-2, "fp16": 1e-2}


@torch.no_grad()
def check(model: LanguageModel, row: Tensor, precision: Precision) -> float:
    """Change single tokens of `row` (T,) and compare the outputs; returns the largest leak found.

    A leak is max |change| over the outputs before the changed token, relative to max |change| after it, so the
    scale of the weights and outputs does not matter. Each variant runs through the model alone, always in the same
    shape, so that a causal model's outputs before t are equal to the last bit.

    Raises:
        RunError: the model sees the future. The message gives the position and the measured changes.
    """
    (length,) = row.shape

    def outputs(tokens: Tensor) -> Tensor:
        with autocast(row.device, precision):
            return model.hidden(tokens[None])[0].float()  # (T, hidden)

    training = model.training
    model.eval()
    before = outputs(row)
    worst = 0.0
    for t in sorted({t for t in (1, length // 3, length // 2, length - 2, length - 1) if 0 < t < length}):
        changed, others = row.clone(), row[row != row[t]]
        changed[t] = others[0] if len(others) else (row[t] + 1) % model.vocab_size  # a token of the text, if it has two
        change = (outputs(changed) - before).abs().amax(dim=-1)  # (T,)
        leak = change[:t].max().item()
        later = change[t + 1 :].max().item() if t + 1 < length else 0.0
        effect = later or change[t].item()
        share = leak / effect if effect > 0 else float(leak > 0)
        worst = max(worst, share)
        if share > TOLERANCE[precision] or share != share:
            raise RunError(
                f"The model sees the future: changing token {t} of {length} changed an output before it by "
                f"{leak:.2g}, against {effect:.2g} after it; a causal model's earlier outputs do not change, so look "
                "for a transposed mask or an operation across positions in the attention or the encoding"
            )
    model.train(training)
    return worst
