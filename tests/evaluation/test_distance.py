"""Retrieval by distance: only the needle moves."""

import re

import numpy as np
import pytest

from newllm.evaluation.distance import Distance
from tests.support.retrieval import copying_subject, reference_nats, trials_by_length, uniform_subject

MARKER = re.compile(rb"<<PASS:[-\d]+>>")


def test_the_key_is_at_its_distance_from_the_query(subject):
    evaluator = Distance(length="8x", distances=["1x", 40, "4x", "8x"], trials=3)
    (trials,) = trials_by_length(evaluator, subject).values()
    prompts = [bytes(trial.prompt) for trial in trials]
    assert {len(trial.prompt) + len(one) for trial in trials for one in trial.candidates} == {257}
    query = 257 - len("0-0-0-0-0>>") - len("<<PASS:")
    back = [query - prompt.index(b"<<PASS:") for prompt in prompts]
    assert back == [32] * 3 + [40] * 3 + [128] * 3 + [query - 1] * 3  # the last behind the row's first token
    for trial in range(3):
        same = prompts[trial::3]
        assert len({MARKER.sub(b"", prompt) for prompt in same}) == 1
        assert len({MARKER.search(prompt)[0] for prompt in same}) == 1
        assert len(set(same)) == 4


def test_numbers_equal_those_of_full_logits(subject):
    evaluator = Distance(length=160, distances=[40, 120], trials=3)
    (trials,) = trials_by_length(evaluator, subject).values()
    findings = evaluator(subject)
    nats = np.array([[reference_nats(subject, trial.prompt, one) for one in trial.candidates] for trial in trials])
    margins = (nats[:, 1] - nats[:, 0]).reshape(2, 3)
    for row, margin, at in zip(findings.tables["distance"], margins, (40, 120), strict=True):
        assert (row["distance"], row["length"], row["trials"]) == (at, 160, 3)
        assert row["margin"] == findings.metrics[f"distance/margin@{at}"] == pytest.approx(margin.mean(), abs=1e-5)
        assert row["accuracy"] == findings.metrics[f"distance/accuracy@{at}"] == np.mean(margin > 0)


def test_a_copying_model_finds_all_keys_and_a_uniform_model_none():
    subject = copying_subject()
    findings = Distance(trials=2)(subject).metrics
    assert [findings[f"distance/accuracy@{at}"] for at in (32, 64, 96, 128, 160, 192, 256, 384, 512)] == [1] * 9
    assert subject.model.adapted == [512, 64]
    nothing = Distance(length="4x", distances=["1x"], trials=2)(uniform_subject()).metrics
    assert nothing == {"distance/accuracy@32": 0, "distance/margin@32": 0}
