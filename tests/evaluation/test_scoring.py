"""Nats of continuations: those of one row at a time, whatever is shared or batched."""

import numpy as np
import pytest
import torch

from newllm.errors import RunError
from newllm.evaluation import subject as subject_module
from newllm.evaluation.scoring import score
from newllm.training.cross_entropy import token_losses
from tests.support.evaluation_subject import make_subject

PROMPT = list(b"The capital of France is")
NAMES = [list(name) for name in (b" Paris", b" Rome", b"!", b" a", b" Rio de Janeiro")]
OTHER = list(b"The author of Ulysses is")  # as long as the first
SHORT = list(b"Q: ")


@torch.no_grad()
def one_by_one(subject, pairs):
    nats = []
    for prompt, continuation in pairs:
        ids = torch.tensor([[*prompt, *continuation]])
        log_p = torch.log_softmax(subject.model(ids).double(), dim=-1)[0, :-1]
        nats.append(-log_p.gather(1, ids[0, 1:, None]).squeeze(1)[len(prompt) - 1 :].numpy())
    return nats


@pytest.mark.parametrize("attention", ["mha", "mla"])
@pytest.mark.parametrize("tokens", [4096, 40])
def test_shared_prompts_and_batches_do_not_change_the_nats(monkeypatch, attention, tokens):
    """Two prompts of one length with five names each, one with two, and lone ones; also in batches of few tokens."""
    monkeypatch.setattr(subject_module, "TOKENS", tokens)
    subject = make_subject("alibi", attention, batch_size=1)
    prompts = [PROMPT] * 5 + [OTHER] * 5 + [SHORT] * 2 + [[7], list(b"x" * 60)]
    continuations = [*NAMES, *NAMES, *NAMES[:2], *NAMES[:2]]
    pairs = [*zip(prompts, continuations, strict=True)]
    for nats, expected in zip(score(subject, pairs), one_by_one(subject, pairs), strict=True):
        np.testing.assert_allclose(nats, expected, atol=1e-5)


def test_only_scored_tokens_get_logits_and_prompts_are_read_once(monkeypatch, subject):
    rows, read = [], []
    hidden = subject.model.hidden

    def losses(states, *rest):
        rows.append(len(states))
        return token_losses(states, *rest)

    def seen(ids, cache=None):
        read.append(ids.numel())
        return hidden(ids, cache)

    monkeypatch.setattr(subject.model, "hidden", seen)
    names = NAMES[:4]
    pairs = [*((PROMPT, name) for name in names), (SHORT, NAMES[0])]
    score(subject, pairs, measure=losses)
    assert sum(rows) == sum(map(len, names)) + len(NAMES[0])
    assert max(read) == len(PROMPT)
    assert sum(read) < 2 * len(PROMPT) + len(SHORT) + len(NAMES[0])


def test_long_rows_form_smaller_batches(monkeypatch, subject):
    monkeypatch.setattr(subject_module, "TOKENS", 0)
    subject.batch_size = 4  # as many tokens as four rows of training's have
    assert {len(inputs) for inputs, _ in list(subject.batches())[:-1]} == {4}
    subject.data.val.inputs = subject.data.val.inputs[:8].reshape(2, -1)
    subject.data.val.labels = subject.data.val.labels[:8].reshape(2, -1)
    assert [inputs.shape for inputs, _ in subject.batches()] == [(1, 128), (1, 128)]


def test_only_labelled_positions_get_logits(monkeypatch, subject):
    seen = []
    real = subject_module.token_losses
    monkeypatch.setattr(subject_module, "token_losses", lambda h, *rest: seen.append(len(h)) or real(h, *rest))
    inputs, labels = next(subject.batches(size=4))
    subject.losses_of(inputs, labels)
    assert seen == [int((labels != -100).sum())]
    assert seen[0] < labels.numel()


@pytest.mark.parametrize("pair", [([], [1]), ([1], [])])
def test_an_empty_prompt_or_continuation_is_refused(subject, pair):
    with pytest.raises(RunError, match="one token or more"):
        score(subject, [pair])
