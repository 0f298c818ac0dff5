import math
from collections import Counter

import numpy as np
import pytest

from newllm.evaluation.diagnosis import judge
from newllm.evaluation.loss import Loss
from newllm.evaluation.ngrams import discounts
from tests.support.evaluation_subject import EOT, make_subject, reference_losses


def test_losses_equal_those_of_full_logits_and_are_computed_once(subject):
    losses, mask = subject.token_losses()
    expected, scored = reference_losses(subject)
    np.testing.assert_array_equal(mask, scored)
    np.testing.assert_allclose(losses[mask], expected[scored], atol=2e-6)
    assert not mask[1, 5:9].any()
    assert (losses[~mask] == 0).all()
    assert subject.token_losses()[0] is losses


def test_token_weighting_and_bits_per_byte(subject):
    losses, mask = reference_losses(subject)
    metrics = Loss()(subject).metrics
    assert metrics["val/loss"] == pytest.approx(losses[mask].mean(), abs=1e-6)
    assert metrics["val/ppl"] == pytest.approx(math.exp(losses[mask].mean()), rel=1e-6)
    text_bytes = mask.sum() - (subject.data.val.labels == EOT).sum()  # bytes are tokens here; end-of-text is no text
    assert metrics["val/bits_per_byte"] == pytest.approx(losses[mask].sum() / math.log(2) / text_bytes, rel=1e-6)


def test_batch_mean_is_the_mean_of_batch_means(subject):
    losses, mask = reference_losses(subject)
    means = [losses[i : i + 4][mask[i : i + 4]].mean() for i in range(0, len(losses), 4)]
    metrics = Loss(weighting="batch_mean", batch_size=4)(subject).metrics
    assert len(losses) % 4
    assert metrics["val/loss"] == pytest.approx(np.mean(means), abs=1e-6)
    assert abs(metrics["val/loss"] - losses[mask].mean()) > 1e-4  # the small last batch counts for more


def test_losses_do_not_depend_on_the_batch_size(subject):
    np.testing.assert_allclose(subject.token_losses()[0], make_subject(batch_size=7).token_losses()[0], atol=2e-6)


TRIGRAM = "a trigram model of the same training text (2.100)"
UNIGRAM = "the bare frequencies of its tokens (3.000)"


@pytest.mark.parametrize(
    ("bits", "trigram", "unigram", "line"),
    [
        (1.9, 2.1, 3.0, f"1.900 bits per byte: better than {TRIGRAM}, better than {UNIGRAM}."),
        (2.5, 2.1, 3.0, f"2.500 bits per byte: worse than {TRIGRAM}, better than {UNIGRAM}."),
        (2.11, 2.1, None, f"2.110 bits per byte: about as good as {TRIGRAM}."),
        (2.99, None, 3.0, f"2.990 bits per byte: about as good as {UNIGRAM}. It has hardly learnt anything yet."),
        (7.0, 2.1, 3.0, f"7.000 bits per byte: worse than {TRIGRAM}, worse than {UNIGRAM}. It has hardly learnt "
                        "anything yet."),
        (0.1, 2.1, None, f"0.100 bits per byte: better than {TRIGRAM}. So few are suspicious: does the validation text "
                         "repeat itself or the training text, or does a mask show the model the next token?"),
        (1.0, None, None, "1.000 bits per byte."),
        (math.inf, 2.1, 3.0, "The validation loss is not finite: training has diverged."),
        (None, 2.1, 3.0, "The validation loss is not finite: training has diverged."),  # as results.json has it
    ],
)  # fmt: skip
def test_a_model_is_judged_by_simple_models_of_its_text(bits, trigram, unigram, line):
    others = {"baseline/trigram_bits_per_byte": trigram, "baseline/unigram_bits_per_byte": unigram}
    assert judge({"val/bits_per_byte": bits} | {k: v for k, v in others.items() if v is not None}) == line


def test_without_a_validation_loss_nothing_is_judged():
    assert judge({"baseline/trigram_bits_per_byte": 2.0}) == ""


def test_the_unigram_model_knows_the_frequencies_of_the_training_labels(subject):
    """Against the same formula in a dictionary: (c - D) / N of seen tokens, and D's mass spread evenly over all ids."""
    labels = subject.data.train.labels[subject.data.train.labels != -100]
    counts, vocab = Counter(labels.tolist()), subject.model.vocab_size
    discount = dict(enumerate(discounts(np.array([*counts.values()]))))
    mass = sum(discount[min(count, 3)] for count in counts.values()) / len(labels)
    scored = subject.data.val.labels[subject.data.val.labels != -100].tolist()
    p = [(counts[id_] - discount[min(counts[id_], 3)]) / len(labels) + mass / vocab for id_ in scored]
    bits = -np.log2(p).sum() / subject.scored_bytes()
    assert subject.unigram_bits_per_byte == pytest.approx(bits)
    assert Loss()(subject).metrics["baseline/unigram_bits_per_byte"] == pytest.approx(bits)
    assert 4 < bits < 6


def test_a_tokenizer_that_loses_text_is_named_beside_its_bits(subject):
    subject.data.tokenizer_notes = ["loses text (1.00% of the tokens are unknown words)"]
    assert "only with those of the same tokenizer" in Loss()(subject).body[-1]
