import math

import numpy as np
import pytest

from newllm.evaluation.diagnosis import diagnose, rescale
from newllm.evaluation.loss import Loss
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


@pytest.mark.parametrize(
    ("ppl", "verdict"),
    [
        (1.5, "leak or mask bug"),
        (29.9, "suspicious"),
        (30, "normal on little data"),
        (105.6, "normal from scratch"),
        (510.3, "high"),
        (14204, "undertrained"),
        (math.inf, "diverged"),
    ],
)
def test_verdicts_at_the_reference_bytes_per_token(ppl, verdict):
    assert diagnose(ppl, 4.4) == verdict


def test_verdicts_follow_bits_per_byte_not_perplexity():
    # 1.4 bits per byte under a small vocabulary: perplexity 19 there, 71 where the bounds hold.
    ppl = 2 ** (1.4 * 3.0)
    assert ppl < 30
    assert rescale(ppl, 3.0) == pytest.approx(2 ** (1.4 * 4.4))
    assert diagnose(ppl, 3.0) == "normal on little data"
    assert diagnose(1e300, 0.5) == "undertrained"  # beyond the range of a float, still a verdict


def test_verdicts_in_any_order():
    assert diagnose(20, 4.4, {"rest": None, "b": 30, "a": 5}) == "b"
    assert diagnose(2000, 4.4, {"b": 30, "a": 5}) == "above 30"


def test_verdicts_come_from_the_configuration(subject):
    subject.config.eval.loss = {"verdicts": {"all the same": None}, "reference": 4.4}
    assert subject.diagnose(3.0) == "all the same"
