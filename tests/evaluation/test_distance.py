"""Retrieval by distance: nothing but the needle moves."""

import re

import numpy as np
import pytest

from newllm.evaluation.distance import Distance
from tests.support.retrieval import copying_subject, slow_nats, trials_by_length, uniform_subject

MARKER = re.compile(rb"<<PASS:[-\d]+>>")


def test_the_key_stands_so_many_tokens_before_the_query(monkeypatch, subject):
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


def test_numbers_are_those_of_full_logits(monkeypatch, subject):
    evaluator = Distance(length=160, distances=[40, 120], trials=3)
    (trials,) = trials_by_length(evaluator, subject).values()
    found = evaluator(subject)
    nats = np.array([[slow_nats(subject, trial.prompt, one) for one in trial.candidates] for trial in trials])
    margins = (nats[:, 1] - nats[:, 0]).reshape(2, 3)
    for row, margin, at in zip(found.tables["distance"], margins, (40, 120), strict=True):
        assert (row["distance"], row["length"], row["trials"]) == (at, 160, 3)
        assert row["margin"] == found.metrics[f"distance/margin@{at}"] == pytest.approx(margin.mean(), abs=1e-5)
        assert row["accuracy"] == found.metrics[f"distance/accuracy@{at}"] == np.mean(margin > 0)


def test_copying_finds_all_and_knowing_nothing_none():
    subject = copying_subject()
    found = Distance(trials=2)(subject).metrics
    assert [found[f"distance/accuracy@{at}"] for at in (32, 64, 96, 128, 160, 192, 256, 384, 512)] == [1] * 9
    assert subject.model.adapted == [512, 64]
    nothing = Distance(length="4x", distances=["1x"], trials=2)(uniform_subject()).metrics
    assert nothing == {"distance/accuracy@32": 0, "distance/margin@32": 0}
