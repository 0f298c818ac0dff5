import numpy as np
import pytest
import torch

from newllm.evaluation.accuracy import Accuracy, top1
from tests.support.evaluation_subject import make_subject


@pytest.fixture
def half_right_subject(subject):
    """A subject whose model finds about half of the labels likeliest."""
    inputs, labels = subject.data.val.batch(np.arange(len(subject.data.val)))
    with torch.no_grad():
        likeliest = subject.model(inputs).argmax(-1)
    chosen = (torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.5) & (labels != -100)
    subject.data.val.labels[chosen.numpy()] = likeliest[chosen].numpy()
    return subject


def test_accuracy_is_the_share_of_scored_labels_with_the_largest_logit(half_right_subject):
    inputs, labels = half_right_subject.data.val.batch(np.arange(len(half_right_subject.data.val)))
    with torch.no_grad():
        hits = (half_right_subject.model(inputs).argmax(-1) == labels)[labels != -100]
    findings = Accuracy()(half_right_subject)
    assert 0.3 < hits.float().mean() < 0.7
    assert findings.metrics == {"val/accuracy": pytest.approx(float(hits.double().mean()), abs=1e-9)}
    assert f"{len(hits):,}" in findings.body[0]


def test_accuracy_does_not_depend_on_the_batch_size():
    assert Accuracy()(make_subject(batch_size=7)).metrics == Accuracy()(make_subject()).metrics


def test_logits_are_computed_in_chunks_and_ties_share_a_hit():
    hidden = torch.eye(3)[[0, 1, 2]].repeat(500, 1)  # more rows than a piece has
    weight = torch.tensor([[1.0, 0, 0], [1, 2, 0], [0, 0, 1], [0, 2, 0]])
    labels = torch.tensor([1, 3, 0]).repeat(500)
    # Token 0 and 1 tie for the first row, 1 and 3 for the second; the third row's label is wrong.
    torch.testing.assert_close(top1(hidden, weight, labels), torch.tensor([0.5, 0.5, 0.0]).repeat(500))
    assert float(top1(hidden, weight, torch.tensor([2, 2, 2]).repeat(500)).mean()) == pytest.approx(1 / 3)
