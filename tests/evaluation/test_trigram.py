import collections
import math

import numpy as np
import pytest

from newllm.evaluation.ngrams import KneserNey, discounts
from newllm.evaluation.trigram import Trigram


def fitted(subject, pieces=1):
    model = KneserNey(subject.model.vocab_size)
    for part in np.array_split(np.arange(len(subject.data.train)), pieces):
        model.count(subject.data.train.inputs[part], subject.data.train.labels[part])
    model.fit()
    return model


class DictionaryKneserNey:
    """Kneser-Ney in dictionaries, straight from the formula."""

    def __init__(self, rows, vocab):
        self.vocab = vocab
        two, three = collections.Counter(), collections.Counter()
        for inputs, labels in zip(rows.inputs.tolist(), rows.labels.tolist(), strict=True):
            for t, label in enumerate(labels):
                if label != -100:
                    two[inputs[t], label] += 1
                    if t:
                        three[inputs[t - 1], inputs[t], label] += 1
        by_context = collections.Counter((b, c) for _, b, c in three)
        self.bigram, self.trigram, self.middle = self.level(two), self.level(three), self.level(by_context)
        self.unigram = self.level(collections.Counter((c,) for _, c in two))

    @staticmethod
    def level(counts):
        d = discounts(np.array(list(counts.values())))
        return counts, {key: d[min(n, 3)] for key, n in counts.items()}

    def p(self, level, key, lower):
        counts, cut = level
        total = sum(n for k, n in counts.items() if k[:-1] == key[:-1])
        if not total:
            return lower
        backoff = sum(cut[k] for k in counts if k[:-1] == key[:-1]) / total
        return (counts[key] - cut[key] if key in counts else 0) / total + backoff * lower

    def __call__(self, *key):
        unigram = self.p(self.unigram, key[-1:], 1 / self.vocab)
        if len(key) == 2:
            return self.p(self.bigram, key, unigram)
        return self.p(self.trigram, key, self.p(self.middle, key[1:], unigram))


def test_probabilities_sum_to_one(subject):
    model, vocab = fitted(subject), subject.model.vocab_size
    words = np.arange(vocab)
    for a, b in [(ord("e"), ord("l")), (ord(" "), ord(" ")), (ord("~"), ord("q")), (0, 1), (ord("\n"), 256)]:
        assert model.probability((a * vocab + b) * vocab + words, order=3).sum() == pytest.approx(1, abs=1e-12)
        assert model.probability(b * vocab + words).sum() == pytest.approx(1, abs=1e-12)


def test_probabilities_equal_the_formula_in_dictionaries(subject):
    train = subject.data.train
    train.inputs, train.labels = train.inputs[:60], train.labels[:60]
    train.labels[3, 4:20] = -100
    vocab = subject.model.vocab_size
    fast, slow = fitted(subject), DictionaryKneserNey(subject.data.train, vocab)
    for a, b, c in [(ord(x), ord(y), ord(z)) for x, y, z in ("sel", "the", " = ", "zzz", "e q", "def", "ef ")]:
        assert fast.probability(np.array([b * vocab + c]))[0] == pytest.approx(slow(b, c), rel=1e-12)
        key = np.array([(a * vocab + b) * vocab + c])
        assert fast.probability(key, order=3)[0] == pytest.approx(slow(a, b, c), rel=1e-12)


def test_counting_in_chunks_does_not_change_the_losses(subject):
    one, five = fitted(subject), fitted(subject, pieces=5)
    rows = subject.data.val.inputs, subject.data.val.labels
    np.testing.assert_array_equal(one.losses(*rows), five.losses(*rows))


def test_the_trigram_scores_the_labels_of_the_model(subject):
    findings = Trigram()(subject)
    mask = subject.token_losses()[1]
    losses = fitted(subject).losses(subject.data.val.inputs, subject.data.val.labels)
    assert losses.size == mask.sum()
    bits = losses.sum() / math.log(2) / subject.scored_bytes()
    assert findings.metrics["baseline/trigram_bits_per_byte"] == pytest.approx(bits)
    assert findings.metrics["baseline/trigram_ppl"] == pytest.approx(math.exp(losses.mean()))
    assert 2 < bits < 5 < subject.bits_per_byte()  # it has learnt; a model with its initial weights has not
    assert "worse than a trigram model of the same training text" in findings.body[1]


def test_a_line_says_that_only_a_part_was_counted(subject):
    body = Trigram(max_tokens=32 * 50)(subject).body
    assert body[-1].startswith("The trigram counted 1,600 of the")
