"""A baseline that a model should beat: a trigram model of the same rows with Kneser-Ney smoothing."""

import math

import numpy as np

from newllm.evaluation.diagnosis import judge
from newllm.evaluation.limits import require_positive
from newllm.evaluation.ngrams import KneserNey
from newllm.evaluation.subject import Evaluator, Findings, Subject

_TOKENS = 2_000_000  # per chunk


class Trigram(Evaluator):
    """`baseline/trigram_bits_per_byte` and `baseline/trigram_ppl`, to compare with the model's own bits per byte.

    One line judges the model by them (`newllm.evaluation.diagnosis.judge`).

    Interpolated modified Kneser-Ney, estimated on the labels of the training rows and scored on the labels of the
    validation rows, with context from the same row only, like the model: one token for the first label, two for the
    others. For a model that carries contexts across rows, consecutive rows are joined. Perplexities are token-weighted.

    max_tokens: training tokens counted, to bound memory (about 40 bytes each); a line reports any text left out.
    """

    def __init__(self, max_tokens: int = 20_000_000):
        require_positive("eval.trigram", max_tokens=max_tokens)
        self.max_tokens = max_tokens

    def __call__(self, subject: Subject) -> Findings:
        train, val = subject.data.train.joined(self.max_tokens), subject.data.val.joined()
        length = subject.token_losses()[1].shape[1]
        used = min(len(train), max(self.max_tokens // length, 1))
        trigram, step = KneserNey(subject.model.vocab_size), max(_TOKENS // length, 1)
        for start in range(0, used, step):
            trigram.count(*train.arrays(np.arange(start, min(start + step, used))))
        trigram.fit()

        nats, tokens = 0.0, 0
        for start in range(0, len(val), step):
            losses = trigram.losses(*val.arrays(np.arange(start, min(start + step, len(val)))))
            nats += float(losses.sum())
            tokens += losses.size

        bits = nats / math.log(2) / max(subject.scored_bytes(), 1)
        ppl, model_bits = math.exp(nats / tokens), subject.bits_per_byte()
        metrics = {"baseline/trigram_bits_per_byte": bits, "baseline/trigram_ppl": ppl}
        measured = {"val/bits_per_byte": model_bits, "baseline/unigram_bits_per_byte": subject.unigram_bits_per_byte}
        rows_of_table = {"this model": model_bits, "trigram (Kneser-Ney)": bits,
                         "unigram (token frequencies)": subject.unigram_bits_per_byte}  # fmt: skip
        body: list = [
            [{"": name, "bits per byte": value} for name, value in rows_of_table.items()],
            judge({**measured, **metrics}),
        ]
        counted, rows = used * length, len(subject.data.train) * length
        if train is not subject.data.train:
            counted, rows = min(self.max_tokens, subject.data.train.scored), subject.data.train.scored
        if counted < rows:
            body.append(f"The trigram counted {counted:,} of the {rows:,} training tokens (eval.trigram.max_tokens)")
        return Findings("Trigram baseline", metrics, body=body)
