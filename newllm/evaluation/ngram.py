"""Interpolated modified Kneser-Ney (Chen & Goodman 1998, §3) up to trigrams, in sorted arrays."""

from dataclasses import dataclass

import numpy as np

IGNORED = -100


class KneserNey:
    """p(w | context) of the labels of rows; a proper distribution over the `vocab` ids for every context.

        p(w | h) = max(c(hw) - D, 0) / c(h) + γ(h) p(w | h without its first token)

    D is one of three discounts, for counts 1, 2 and more, from the counts of counts; γ(h) hands the discounted mass
    on; a context never seen hands on everything. Orders below a model's own count in how many contexts an n-gram
    occurs instead of how often. The last order, unigrams, hands on to the uniform distribution.

    The first label of a row has one token of context. Counts of that bigram, not of its contexts, are the right ones
    there, so there are two chains: trigram → bigram by contexts → unigram, and bigram → unigram.
    """

    def __init__(self, vocab: int):
        self.vocab = vocab
        self._trigrams = Counts.empty()
        self._bigrams = Counts.empty()

    def count(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        """Add rows of inputs and labels [N, T]; labels of -100 count for nothing."""
        bigrams, trigrams, _ = self._keys(inputs, labels)
        self._bigrams = self._bigrams.plus(bigrams)
        self._trigrams = self._trigrams.plus(trigrams)

    def fit(self) -> None:
        """Make the levels out of the counts."""
        contexts = Counts.of(self._trigrams.keys % self.vocab**2)  # N1+(. b c)
        unigrams = Counts.of(self._bigrams.keys % self.vocab)  # N1+(. c)
        self._unigram = Level.of(unigrams, self.vocab)
        self._middle = Level.of(contexts, self.vocab)
        self._bigram = Level.of(self._bigrams, self.vocab)
        self._trigram = Level.of(self._trigrams, self.vocab)

    def losses(self, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """-ln p of every scored label, fp64, first those with one token of context, then those with two."""
        _, trigrams, first = self._keys(inputs, labels)
        one = self.probability(first)
        two = self.probability(trigrams, order=3)
        return -np.log(np.concatenate([one, two]))

    def probability(self, keys: np.ndarray, order: int = 2) -> np.ndarray:
        """p(w | h) of bigram keys ``h V + w`` (order 2) or trigram keys ``(a V + b) V + w`` (order 3)."""
        unigram = self._unigram.interpolate(keys % self.vocab, np.full(len(keys), 1 / self.vocab))
        if order == 2:
            return self._bigram.interpolate(keys, unigram)
        middle = self._middle.interpolate(keys % self.vocab**2, unigram)
        return self._trigram.interpolate(keys, middle)

    def _keys(self, inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys of the scored labels' bigrams, of their trigrams, and of the bigrams of first labels alone."""
        scored = labels != IGNORED
        last = inputs.astype(np.int64)
        bigrams = last * self.vocab + labels  # [N, T]
        trigrams = last[:, :-1] * self.vocab**2 + bigrams[:, 1:]  # [N, T - 1]
        return bigrams[scored], trigrams[scored[:, 1:]], bigrams[:, 0][scored[:, 0]]


@dataclass(frozen=True)
class Counts:
    """How often each key occurs: sorted int64 keys, int64 counts."""

    keys: np.ndarray
    counts: np.ndarray

    @staticmethod
    def empty() -> "Counts":
        return Counts(np.empty(0, np.int64), np.empty(0, np.int64))

    @staticmethod
    def of(keys: np.ndarray) -> "Counts":
        return Counts(*np.unique(keys, return_counts=True))

    def plus(self, keys: np.ndarray) -> "Counts":
        new = Counts.of(keys)
        if not len(self.keys):
            return new
        merged, where = np.unique(np.concatenate([self.keys, new.keys]), return_inverse=True)
        counts = np.bincount(where, weights=np.concatenate([self.counts, new.counts]), minlength=len(merged))
        return Counts(merged, counts.astype(np.int64))


@dataclass(frozen=True)
class Level:
    """One order: its n-grams with the discounted counts, its contexts with their sums and handed-on mass."""

    vocab: int
    keys: np.ndarray  # sorted context * vocab + word
    discounted: np.ndarray  # max(c - D, 0)
    contexts: np.ndarray  # sorted
    totals: np.ndarray  # c(h)
    handed_on: np.ndarray  # γ(h)

    @staticmethod
    def of(counts: Counts, vocab: int) -> "Level":
        discount = discounts(counts.counts)[np.minimum(counts.counts, 3)]
        contexts, where = np.unique(counts.keys // vocab, return_inverse=True)
        totals = np.bincount(where, weights=counts.counts, minlength=len(contexts))
        kept = counts.counts - discount
        handed_on = np.bincount(where, weights=discount, minlength=len(contexts)) / totals
        return Level(vocab, counts.keys, kept, contexts, totals, handed_on)

    def interpolate(self, keys: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p of each key, given p of its word at the next lower order."""
        context, known = _find(self.contexts, keys // self.vocab)
        if not len(self.contexts):
            return lower
        ngram, seen = _find(self.keys, keys)
        own = np.where(seen, self.discounted[ngram], 0.0) / self.totals[context]
        return np.where(known, own + self.handed_on[context] * lower, lower)


def discounts(counts: np.ndarray) -> np.ndarray:
    """D of counts 0, 1, 2 and 3 or more: ``D_k = k - (k + 1) Y n_{k+1} / n_k``, Y = n_1 / (n_1 + 2 n_2).

    Counts of counts so small that the estimate leaves (0, k) are those of toy data: 0.75 k then, a proper value.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)[:5].astype(float)  # n[k] keys with count k
    y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.0
    result = np.zeros(4)
    for k in (1, 2, 3):
        estimate = k - (k + 1) * y * n[k + 1] / n[k] if n[k] else 0.0
        result[k] = estimate if 0 < estimate < k else 0.75 * k
    return result


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each key in the sorted table (some index where it is missing), and whether it is there."""
    if not len(table):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return index, table[index] == keys
