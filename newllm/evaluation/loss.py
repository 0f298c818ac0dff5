"""Validation loss, perplexity and bits per byte."""

from typing import Literal

import numpy as np

from newllm.errors import ConfigError
from newllm.evaluation.diagnosis import BYTES_PER_TOKEN, VERDICTS, rescale
from newllm.evaluation.fingerprint import fingerprint
from newllm.evaluation.limits import require_positive
from newllm.evaluation.subject import Evaluator, Findings, Subject


class Loss(Evaluator):
    """`val/loss` (nats per token), `val/ppl` = exp(val/loss), `val/bits_per_byte`.

    weighting: "token" is the mean over all scored tokens. "batch_mean" is the mean of the means of batches of
    `batch_size` rows, as published: a smaller last batch gets more weight per token (2 % of perplexity with 500 rows in
    batches of 8). Bits per byte is always the sum of nats of all scored tokens / ln 2 / their UTF-8 bytes of text; an
    end-of-text token has nats and no bytes.

    verdicts: name -> upper bound of perplexity, null for no bound; bounds hold at `reference` bytes per token. A
    vocabulary of 4096 has about 3, so its perplexities are lower for the same quality; bounds are compared after
    rescaling through bits per byte (`newllm.evaluation.diagnosis`).
    """

    def __init__(
        self,
        weighting: Literal["token", "batch_mean"] = "token",
        batch_size: int = 8,
        reference: float = BYTES_PER_TOKEN,
        verdicts: dict = VERDICTS,
    ):
        require_positive("eval.loss", batch_size=batch_size, reference=reference)
        bounds = list(verdicts.values())
        if not all(bound is None or isinstance(bound, int | float) for bound in bounds) or len({*bounds}) < len(bounds):
            raise ConfigError(
                "eval.loss.verdicts must give each verdict a perplexity bound of its own, or null for no bound, as in "
                f"'suspicious: 30'; got {verdicts}."
            )
        self.weighting, self.batch_size, self.reference = weighting, batch_size, reference

    def __call__(self, subject: Subject) -> Findings:
        losses, mask = subject.token_losses()
        tokens = int(mask.sum())
        step = len(losses) if self.weighting == "token" else self.batch_size  # rows whose mean is taken as one
        batches = [losses[i : i + step][mask[i : i + step]] for i in range(0, len(losses), step)]
        loss = float(np.mean([batch.mean(dtype=np.float64) for batch in batches]))
        ppl, bits = float(np.exp(loss)), subject.bits_per_byte()
        bytes_per_token = subject.scored_bytes() / tokens
        how = "token-weighted" if self.weighting == "token" else f"mean over batches of {self.batch_size}, as published"
        body: list = [
            f"Perplexity {ppl:.2f}: {subject.diagnose(ppl)}",
            f"Loss {loss:.4f} nats per token ({how}), {bits:.4f} bits per byte",
            f"{tokens:,} tokens scored, {bytes_per_token:.2f} bytes each; the verdict is that of perplexity "
            f"{rescale(ppl, bytes_per_token, self.reference):.0f} at {self.reference:g}",
        ]
        metrics = {"val/loss": loss, "val/ppl": ppl, "val/bits_per_byte": bits}
        scored = dict.fromkeys(metrics, subject.scored_rows)
        if self.weighting == "batch_mean":  # weights the tokens differently
            scored["val/loss"] = scored["val/ppl"] = fingerprint(subject.scored_rows, self.batch_size)
        return Findings("Validation", metrics, body=body, scored=scored)
