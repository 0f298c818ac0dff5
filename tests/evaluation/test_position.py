import numpy as np
import pytest

from newllm.evaluation.loss import Loss
from newllm.evaluation.position import Position
from tests.support.evaluation_subject import reference_losses


def test_buckets_recombine_to_the_whole(subject):
    findings = Position(edges=[0, 4, 16, 64])(subject)
    assert list(findings.metrics) == [f"val/ppl_by_position/{bucket}" for bucket in ("0-4", "4-16", "16-32")]
    tokens = np.array([row["tokens"] for row in findings.body[0]])
    nats = np.log([row["ppl"] for row in findings.body[0]])
    assert (tokens * nats).sum() / tokens.sum() == pytest.approx(Loss()(subject).metrics["val/loss"], abs=1e-9)


def test_each_position_has_its_mean_and_standard_error(subject):
    losses, mask = reference_losses(subject)
    table = {row["position"]: row for row in Position()(subject).tables["position"]}
    for position in (0, 6, 31):  # 6 is masked in one row
        scored = losses[:, position][mask[:, position]]
        row = table[position]
        assert row["rows"] == len(scored)
        assert row["loss"] == pytest.approx(scored.mean(), abs=1e-5)
        assert row["se"] == pytest.approx(scored.std(ddof=1) / np.sqrt(len(scored)), rel=1e-4)
