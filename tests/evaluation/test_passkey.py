"""Passkeys: rows of exact length with one true key, scored from the key's first token on."""

import inspect
import re
import tokenize

import numpy as np
import pytest
import torch

from newllm.data.tokenizer import train_bpe
from newllm.errors import ConfigError, RunError
from newllm.evaluation import retrieval
from newllm.evaluation.passkey import Passkey
from newllm.evaluation.retrieval import Trial, judge, wilson
from tests.support.evaluation_subject import TextData, make_subject
from tests.support.retrieval import copying_subject, greedy_tokens, reference_nats, trials_by_length, uniform_subject

KEY = re.compile(rb"<<PASS:(\d(?:-\d)*)>>")


def with_bpe(subject):
    """The subject's text under a byte-level BPE trained on it."""
    text = inspect.getsource(tokenize)
    tokenizer = train_bpe([text], 400)
    ids = np.array(tokenizer.encode(text))
    rows = type(subject.data.val)(ids[None], ids[None])
    subject.data = TextData(rows, rows, tokenizer, ids)  # type: ignore[assignment]
    return subject


def text_of(subject, ids) -> bytes:
    decode = getattr(subject.data.tokenizer, "decode", None)
    return decode(ids).encode() if decode else bytes(ids)


@pytest.mark.parametrize("prepare", [lambda subject: subject, with_bpe])
@pytest.mark.parametrize("filler", ["varied", "prefix"])
def test_rows_have_their_length_and_contain_the_true_key_once(subject, prepare, filler):
    subject = prepare(subject)
    evaluator = Passkey(lengths=["2x", 100], depths=[0, 0.5, 1], trials=4, filler=filler)
    findings = trials_by_length(evaluator, subject)
    assert list(findings) == [64, 100]
    for length, trials in findings.items():
        assert len(trials) == 12
        for trial in trials:
            true, wrong = (text_of(subject, candidate) for candidate in trial.candidates)
            assert {len(trial.prompt) + len(one) for one in trial.candidates} == {length + 1}
            prompt = text_of(subject, trial.prompt)
            (key,) = KEY.findall(prompt)
            assert prompt.endswith(b"<<PASS:")
            assert true == key + b">>"
            assert all(a != b for a, b in zip(true[:-2:2], wrong[:-2:2], strict=True))
            assert re.fullmatch(rb"\d-\d-\d-\d-\d>>", wrong)


def test_digits_are_tokens_and_both_markers_are_the_same_tokens(subject):
    subject = with_bpe(subject)
    digits = {subject.data.tokenizer.encode(str(digit))[0] for digit in range(10)}
    for trial in trials_by_length(Passkey(lengths=[90]), subject)[90]:
        true, wrong = trial.candidates
        assert set(true[:9:2]) | set(wrong[:9:2]) <= digits
        query = len(subject.data.tokenizer.encode("<<PASS:"))
        marker = [*trial.prompt[-query:], *true]
        windows = [trial.prompt[i : i + len(marker)] for i in range(len(trial.prompt) - len(marker) + 1)]
        assert windows.count(marker) == 1


def test_depth_is_the_share_of_the_filler_before_the_key(subject):
    trials = trials_by_length(Passkey(lengths=[201], depths=[0, 0.25, 0.9, 1], trials=1), subject)[201]
    room = 201 + 1 - 18 - 18  # marker and query with key have 18 bytes each
    places = [text_of(subject, trial.prompt).index(b"<<PASS:") for trial in trials]
    assert places == [1, room // 4, int(0.9 * room), room]


def test_filler_is_validation_text_from_a_different_place_in_each_trial(subject):
    def fillers(kind):
        trials = trials_by_length(Passkey(lengths=[128], filler=kind), subject)[128]
        return {KEY.sub(b"", text_of(subject, trial.prompt)).removesuffix(b"<<PASS:") for trial in trials}

    text = bytes(subject.data.val_tokens[:-1].tolist())
    assert len(fillers("varied")) > 40
    assert all(one in text for one in fillers("varied"))
    assert [*fillers("prefix")] == [text[: 128 + 1 - 36]]


def test_trials_depend_on_the_seed_of_the_evaluator_only():
    def trials(seed, subject):
        return trials_by_length(Passkey(lengths=["2x"], seed=seed), subject)

    other = make_subject("alibi", "mla")
    other.config.trainer.seed = 77
    assert trials(0, make_subject()) == trials(0, other)
    assert trials(0, other) != trials(1, other)
    keys = [tuple(trial.candidates[0]) for trial in trials(0, other)[64]]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_margins_equal_those_of_full_logits(attention):
    """Scored from the key's first token to its last; the row of 200 tokens by way of a cache, the short one not."""
    subject = make_subject("rope", attention)
    evaluator = Passkey(lengths=[64, 200], depths=[0.2, 0.8], trials=2)
    findings = trials_by_length(evaluator, subject)
    metrics = evaluator(subject).metrics
    for length, trials in findings.items():
        nats = np.array([[reference_nats(subject, trial.prompt, one) for one in trial.candidates] for trial in trials])
        margins = nats[:, 1] - nats[:, 0]
        assert metrics[f"passkey/margin@{length}"] == pytest.approx(margins.mean(), abs=1e-5)
        assert metrics[f"passkey/accuracy@{length}"] == np.mean(margins > 0)
        judged = [one["margin"] for one in judge(subject, trials)]
        np.testing.assert_allclose(judged, margins, atol=1e-5)


def test_exact_is_the_result_of_greedy_decoding(subject):
    """Of a key that the model itself has decoded, and of one that differs in its last token."""
    prompt = list(b"def wrap(text, width=70, **kwargs): <<PASS:")
    key = greedy_tokens(subject, prompt, 6)
    other = [*key[:-1], (key[-1] + 1) % 256]
    judged = judge(subject, [Trial({}, prompt, [key, other]), Trial({}, prompt, [other, key])])
    assert [one["exact"] for one in judged] == [True, False]


def test_a_copying_model_finds_every_key():
    subject = copying_subject()
    findings = Passkey(lengths=["1x", "4x"], trials=2)(subject)
    for length in (64, 256):
        assert findings.metrics[f"passkey/accuracy@{length}"] == 1
        assert findings.metrics[f"passkey/exact@{length}"] == 1
        assert findings.metrics[f"passkey/margin@{length}"] > 3
    assert subject.model.adapted == [64, 64, 256, 64]  # adapted to each length, and back
    assert "Above chance (95 % interval above 0.5) at 64, 256 tokens" in findings.body


def test_a_uniform_model_has_no_margin():
    findings = Passkey(lengths=["2x"], trials=2)(uniform_subject())
    assert findings.metrics == {"passkey/accuracy@64": 0, "passkey/margin@64": 0, "passkey/exact@64": 0}
    assert "Nowhere above chance" in findings.body


def test_the_table_has_a_line_per_length_and_depth(subject):
    findings = Passkey(lengths=["2x", "3x"], depths=[0.1, 0.9], trials=3)(subject)
    table = findings.tables["passkey"]
    assert [(row["length"], row["depth"], row["trials"]) for row in table] == [
        (64, 0.1, 3), (64, 0.9, 3), (96, 0.1, 3), (96, 0.9, 3),
    ]  # fmt: skip
    for length in (64, 96):
        rows = [row for row in table if row["length"] == length]
        for name in ("accuracy", "margin", "exact"):
            mean = np.mean([row[name] for row in rows])
            assert findings.metrics[f"passkey/{name}@{length}"] == pytest.approx(mean)
        assert all(row["low"] < row["accuracy"] < row["high"] or row["accuracy"] in (0, 1) for row in rows)


def test_wilsons_interval():
    """As in the first line of Newcombe (1998), table I: 81 of 263, 0.2553 to 0.3662."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((1 - 0.2775, 1), abs=1e-4)


def test_a_length_that_fails_does_not_lose_the_others(monkeypatch, subject):
    real = retrieval.judge

    def judge(subject, trials):
        if len(trials[0].prompt) > 80:
            raise RuntimeError("not enough memory: you tried to allocate 1 byte")
        return real(subject, trials)

    monkeypatch.setattr(retrieval, "judge", judge)
    findings = Passkey(lengths=["2x", "4x"], trials=1)(subject)
    assert {name.partition("@")[2] for name in findings.metrics} == {"64"}
    assert findings.body[-1].startswith("FAILED: 128 tokens: not enough memory")


def test_losses_that_are_not_finite_are_no_result(subject):
    torch.nn.init.constant_(subject.model.head.weight, float("nan"))
    with pytest.raises(RunError, match="measured nothing; FAILED: 64 tokens: its losses are not finite"):
        Passkey(lengths=["2x"], trials=1)(subject)


def test_rows_beyond_the_table_of_an_encoding_are_refused(subject):
    subject.model.position.limit = 64
    Passkey(lengths=["2x"]).check(subject.data, subject.model)
    with pytest.raises(ConfigError, match=r"eval\.passkey\.lengths asks for rows of 65"):
        Passkey(lengths=["2x", 65]).check(subject.data, subject.model)


def test_no_gradients_are_computed(subject):
    Passkey(lengths=["2x"], trials=1)(subject)
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert torch.is_grad_enabled()
