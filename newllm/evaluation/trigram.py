"""A baseline that a model should beat: a trigram model of the same rows with Kneser-Ney smoothing."""

import math

import numpy as np

from newllm.data.facts import IGNORED
from newllm.evaluation.limits import require_positive
from newllm.evaluation.subject import Evaluator, Findings, Subject

_TOKENS = 2_000_000  # per chunk


class Trigram(Evaluator):
    """`baseline/trigram_bits_per_byte` and `baseline/trigram_ppl`, to compare with the model's own bits per byte.

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
        beats = model_bits < bits
        verdict = f"beats the trigram by {1 - model_bits / bits:.1%}" if beats else "DOES NOT BEAT the trigram"
        body: list = [
            [{"": "this model", "bits per byte": model_bits}, {"": "trigram (Kneser-Ney)", "bits per byte": bits}],
            f"The model {verdict}; the trigram's perplexity is {ppl:.2f} ({subject.diagnose(ppl)})",
        ]
        counted, rows = used * length, len(subject.data.train) * length
        if train is not subject.data.train:
            counted, rows = min(self.max_tokens, subject.data.train.scored), subject.data.train.scored
        if counted < rows:
            body.append(f"The trigram counted {counted:,} of the {rows:,} training tokens (eval.trigram.max_tokens)")
        metrics = {"baseline/trigram_bits_per_byte": bits, "baseline/trigram_ppl": ppl}
        return Findings("Trigram baseline", metrics, body=body)


class KneserNey:
    """Interpolated modified Kneser-Ney (Chen & Goodman 1998, §3) up to trigrams, in sorted arrays.

    p(w | context) of row labels is a proper distribution over the `vocab` ids for every context:

        p(w | h) = max(c(hw) - D, 0) / c(h) + γ(h) p(w | h without its first token)

    D is one of three discounts, for counts 1, 2 and more, estimated from the counts of counts. γ(h) is the discounted
    mass, which goes to the lower order; for an unseen context that is all of the mass. Lower orders count the contexts
    in which an n-gram occurs instead of its occurrences. Unigrams back off to the uniform distribution.

    The first label of a row has one token of context, so its bigram counts occurrences, not contexts. Hence two chains:
    trigram → bigram by contexts → unigram, and bigram → unigram.
    """

    def __init__(self, vocab: int):
        self.vocab = vocab
        self._bigram_keys: list[np.ndarray] = []
        self._trigram_keys: list[np.ndarray] = []

    def count(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        """Add rows of inputs and labels [N, T]; labels of -100 are ignored."""
        bigrams, trigrams, _ = self._keys(inputs, labels)
        self._bigram_keys.append(bigrams)
        self._trigram_keys.append(trigrams)

    def fit(self) -> None:
        """Estimate all orders from the counts."""
        bigrams = np.unique(np.concatenate(self._bigram_keys), return_counts=True)
        trigrams = np.unique(np.concatenate(self._trigram_keys), return_counts=True)
        self._bigram, self._trigram = Order(*bigrams, self.vocab), Order(*trigrams, self.vocab)
        # Contexts in which an n-gram occurs: N1+(. b c) and N1+(. c).
        self._middle = Order(*np.unique(trigrams[0] % self.vocab**2, return_counts=True), self.vocab)
        self._unigram = Order(*np.unique(bigrams[0] % self.vocab, return_counts=True), self.vocab)

    def losses(self, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """-ln p of every scored label in fp64: first labels with one token of context, then those with two."""
        _, trigrams, first = self._keys(inputs, labels)
        return -np.log(np.concatenate([self.probability(first), self.probability(trigrams, order=3)]))

    def probability(self, keys: np.ndarray, order: int = 2) -> np.ndarray:
        """p(w | h) of bigram keys ``h V + w`` (order 2) or trigram keys ``(a V + b) V + w`` (order 3)."""
        unigram = self._unigram.interpolate(keys % self.vocab, np.full(len(keys), 1 / self.vocab))
        if order == 2:
            return self._bigram.interpolate(keys, unigram)
        return self._trigram.interpolate(keys, self._middle.interpolate(keys % self.vocab**2, unigram))

    def _keys(self, inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys of the bigrams and trigrams of scored labels, and of the bigrams of first labels only."""
        scored = labels != IGNORED
        last = inputs.astype(np.int64)
        bigrams = last * self.vocab + labels  # [N, T]
        trigrams = last[:, :-1] * self.vocab**2 + bigrams[:, 1:]  # [N, T - 1]
        return bigrams[scored], trigrams[scored[:, 1:]], bigrams[:, 0][scored[:, 0]]


class Order:
    """N-grams of one order: sorted int64 keys ``context * vocab + word`` and their counts."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, vocab: int):
        self.vocab, self.keys = vocab, keys
        discount = discounts(counts)[np.minimum(counts, 3)]
        self.discounted = counts - discount  # max(c - D, 0)
        self.contexts, where = np.unique(keys // vocab, return_inverse=True)
        self.totals = np.bincount(where, weights=counts, minlength=len(self.contexts))  # c(h)
        self.backoff = np.bincount(where, weights=discount, minlength=len(self.contexts)) / self.totals  # γ(h)

    def interpolate(self, keys: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p of each key, given p of its word at the lower order."""
        if not len(self.keys):
            return lower
        context, known = _find(self.contexts, keys // self.vocab)
        ngram, seen = _find(self.keys, keys)
        own = np.where(seen, self.discounted[ngram], 0.0) / self.totals[context]
        return np.where(known, own + self.backoff[context] * lower, lower)


def discounts(counts: np.ndarray) -> np.ndarray:
    """D of counts 0, 1, 2 and 3 or more: ``D_k = k - (k + 1) Y n_{k+1} / n_k``, Y = n_1 / (n_1 + 2 n_2).

    On toy data an estimate can leave (0, k); D_k is 0.75 k then.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)[:5].astype(float)  # n[k] keys with count k
    y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.0
    result = np.zeros(4)
    for k in (1, 2, 3):
        estimate = k - (k + 1) * y * n[k + 1] / n[k] if n[k] else 0.0
        result[k] = estimate if 0 < estimate < k else 0.75 * k
    return result


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each key in the sorted, non-empty table (any index if missing), and whether it is present."""
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return index, table[index] == keys
