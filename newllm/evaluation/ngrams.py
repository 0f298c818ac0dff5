"""Smoothed n-gram models of rows of tokens."""

import numpy as np

from newllm.data.facts import IGNORED


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
