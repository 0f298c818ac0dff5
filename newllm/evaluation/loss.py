"""Validation loss, perplexity and bits per byte."""

from typing import Literal

import numpy as np

from newllm.evaluation.diagnosis import judge
from newllm.evaluation.fingerprint import fingerprint
from newllm.evaluation.limits import require_positive
from newllm.evaluation.subject import Evaluator, Findings, Subject


class Loss(Evaluator):
    """`val/loss` (nats per token), `val/ppl` = exp(val/loss), `val/bits_per_byte`.

    weighting: "token" is the mean over all scored tokens. "batch_mean" is the mean of the means of batches of
    `batch_size` rows, as published: a smaller last batch gets more weight per token (2 % of perplexity with 500 rows in
    batches of 8). Bits per byte is always the sum of nats of all scored tokens / ln 2 / their UTF-8 bytes of text; an
    end-of-text token has nats and no bytes.

    `baseline/unigram_bits_per_byte` is that of the frequencies of tokens in the training rows. One line judges the
    model by it and, where eval.trigram measures that, by a trigram model (`newllm.evaluation.diagnosis.judge`).
    """

    def __init__(
        self,
        weighting: Literal["token", "batch_mean"] = "token",
        batch_size: int = 8,
    ):
        require_positive("eval.loss", batch_size=batch_size)
        self.weighting, self.batch_size = weighting, batch_size

    def __call__(self, subject: Subject) -> Findings:
        losses, mask = subject.token_losses()
        tokens = int(mask.sum())
        step = len(losses) if self.weighting == "token" else self.batch_size  # rows whose mean is taken as one
        batches = [losses[i : i + step][mask[i : i + step]] for i in range(0, len(losses), step)]
        loss = float(np.mean([batch.mean(dtype=np.float64) for batch in batches]))
        ppl, bits = float(np.exp(loss)), subject.bits_per_byte()
        bytes_per_token = subject.scored_bytes() / tokens
        how = "token-weighted" if self.weighting == "token" else f"mean over batches of {self.batch_size}, as published"
        metrics = {"val/loss": loss, "val/ppl": ppl, "val/bits_per_byte": bits}
        metrics["baseline/unigram_bits_per_byte"] = subject.unigram_bits_per_byte
        body: list = [
            judge(metrics),
            f"Perplexity {ppl:.2f}, loss {loss:.4f} nats per token ({how})",
            f"{tokens:,} tokens scored, {bytes_per_token:.2f} bytes each",
        ]
        if any(note.startswith("loses text") for note in subject.data.tokenizer_notes):
            body.append("The tokenizer loses text, so bits per byte compare only with those of the same tokenizer")
        scored = dict.fromkeys(metrics, subject.scored_rows)
        if self.weighting == "batch_mean":  # weights the tokens differently
            scored["val/loss"] = scored["val/ppl"] = fingerprint(subject.scored_rows, self.batch_size)
        return Findings("Validation", metrics, body=body, scored=scored)
