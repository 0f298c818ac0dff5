"""Ruler tasks: the statements and queries in their texts, and answers chosen among candidates."""

import re

import numpy as np
import pytest

from newllm.evaluation.retrieval import generator
from newllm.evaluation.ruler import TASKS, Ruler
from tests.support.retrieval import copying_subject, reference_nats, trials_by_length, uniform_subject

STATEMENT = re.compile(rb"<<(\w):(\w)>>")


def trials_of(task, subject, length=160, **options):
    return trials_by_length(Ruler(lengths=[length], tasks=[task], **options), subject)[length]


@pytest.mark.parametrize("task", TASKS)
def test_rows_have_their_length_and_a_filler_of_validation_text(subject, task):
    text = bytes(subject.data.val_tokens[:-1].tolist())
    for trial in trials_of(task, subject, trials=8):
        assert {len(trial.prompt) + len(one) for one in trial.candidates} == {161}
        assert len({tuple(one) for one in trial.candidates}) == len(trial.candidates) == (10 if task == "needle" else 4)
        filler = re.sub(rb"<<\w(:\w)?>>|<<[\w ]+:$", b"", bytes(trial.prompt))
        assert filler
        assert filler in text


@pytest.mark.parametrize(("task", "hops"), [("needle", 0), ("multi_key_needle", 0), ("one_hop", 1), ("two_hops", 2)])
def test_the_answer_is_at_the_end_of_the_chain(subject, task, hops):
    for trial in trials_of(task, subject, trials=20):
        prompt = bytes(trial.prompt)
        statements = STATEMENT.findall(prompt)
        known = dict(statements)
        assert len(known) == len(statements) == (1 if task == "needle" else 4 * (hops + 1))
        (name,) = re.findall(rb"<<(?:value of )?(\w):$", prompt)
        for _ in range(hops + 1):
            name = known[name]
        assert name == bytes(trial.candidates[0])
        digits = {value for value in known.values() if value.isdigit()}
        assert digits <= {bytes(one) for one in trial.candidates}
        before: set[bytes] = set()
        for key, value in statements:  # a name is statements before it is used
            assert value.isdigit() or value in before
            before.add(key)


def test_the_queried_key_can_be_anywhere(subject):
    ranks = set()
    for trial in trials_of("multi_key_needle", subject):
        values = [value for _, value in STATEMENT.findall(bytes(trial.prompt))]
        ranks.add(values.index(bytes(trial.candidates[0])))
    assert ranks == {0, 1, 2, 3}


@pytest.mark.parametrize("length", [64, 161, 488])
def test_the_first_candidate_is_the_most_frequent_word(subject, length):
    for trial in trials_of("frequent_word", subject, length, trials=5):
        words = re.findall(rb"<<(\w)>>", bytes(trial.prompt))
        first, *others = (words.count(bytes(one)) for one in trial.candidates)
        assert sum([first, *others]) == len(words) == length // 8
        assert first >= 2 * len(words) / 5
        assert first > max(others)


def test_a_seed_always_gives_the_same_texts():
    """Results are compared with those of other days and machines, so the texts of a seed must not change."""
    findings = {name: task(generator(0, "ruler", name, 128, 0), 2, 40) for name, task in TASKS.items()}
    assert {name: (" ".join(one.statements), one.query, "".join(one.answers)) for name, one in findings.items()} == {
        "needle": ("<<T:2>>", "<<T:", "2076598134"),
        "multi_key_needle": ("<<B:6>> <<Z:4>>", "<<Z:", "46"),
        "one_hop": ("<<X:6>> <<L:1>> <<C:L>> <<I:X>>", "<<value of C:", "16"),
        "two_hops": ("<<N:8>> <<X:2>> <<S:N>> <<A:S>> <<U:X>> <<D:U>>", "<<value of A:", "82"),
        "frequent_word": ("<<S>> <<S>> <<S>> <<M>> <<S>>", "<<most frequent:", "SM"),
    }


@pytest.mark.parametrize("task", TASKS)
def test_numbers_equal_those_of_full_logits(subject, task):
    evaluator = Ruler(lengths=[150], tasks=[task], trials=3)
    trials = trials_by_length(evaluator, subject)[150]
    findings = evaluator(subject)
    nats = [[reference_nats(subject, trial.prompt, one) for one in trial.candidates] for trial in trials]
    (row,) = findings.tables["ruler"]
    assert findings.metrics == {f"ruler/{task}@150": np.mean([one[0] < min(one[1:]) for one in nats])}
    assert row["margin"] == pytest.approx(np.mean([np.mean(one[1:]) - one[0] for one in nats]), abs=1e-5)
    assert row["chance"] == 1 / len(trials[0].candidates)
    assert (row["task"], row["length"], row["trials"]) == (task, 150, 3)


def test_a_copying_model_finds_keys_and_a_uniform_model_none():
    tasks = ["needle", "multi_key_needle"]
    subject = copying_subject()
    findings = Ruler(lengths=[64, "3x"], tasks=tasks, trials=6)(subject)
    assert findings.metrics == {f"ruler/{task}@{length}": 1 for task in tasks for length in (64, 192)}
    assert subject.model.adapted == [64, 64, 192, 64] * 2
    nothing = Ruler(lengths=[128], trials=2)(uniform_subject())
    assert set(nothing.metrics.values()) == {0}
    assert {row["margin"] for row in nothing.tables["ruler"]} == {0}


def test_trials_depend_on_the_seed(subject):
    trials, same = (trials_of("one_hop", subject, seed=3) for _ in range(2))
    assert trials == same
    assert trials != trials_of("one_hop", subject, seed=4)
