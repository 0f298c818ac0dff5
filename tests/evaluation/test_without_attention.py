"""What can be asked of a model that carries a context in place of attention, and what it refuses."""

import math
from collections.abc import Callable

import pytest
import torch

from newllm.errors import ConfigError
from newllm.evaluation.distance import Distance
from newllm.evaluation.extrapolation import Extrapolation
from newllm.evaluation.kv_cache import KVCache
from newllm.evaluation.passkey import Passkey
from newllm.evaluation.position import Position
from newllm.evaluation.qk import QueryKey
from newllm.evaluation.rank import EffectiveRank
from newllm.evaluation.reversal import Reversal
from newllm.evaluation.ruler import Ruler
from newllm.evaluation.scoring import score
from newllm.evaluation.subject import Subject
from newllm.two_phase.context_token import ContextToken
from tests.support.evaluation_subject import make_subject, reference_losses


@pytest.fixture
def subject() -> Subject:
    subject = make_subject()
    subject.model = ContextToken(2, 24, 2, 16, tokens=257, seq_len=32, seed=1).eval()
    subject.training_data = subject.data  # rows of tokens, as if no first phase had made contexts
    return subject


@pytest.mark.parametrize(
    "evaluator",
    [
        Position(edges=[0, 16]),
        Reversal(),
        EffectiveRank(positions=64),
        Extrapolation(lengths=["1x", "4x"], chunks=2),
        Passkey(lengths=[128], depths=[0.5], trials=2),
        Distance(length=128, distances=[32, 64], trials=2),
        Ruler(lengths=[150], tasks=["needle"], trials=2),
    ],
    ids=lambda evaluator: type(evaluator).__name__,
)
def test_evaluators_that_need_hidden_states_only(subject: Subject, evaluator: Callable) -> None:
    if hasattr(evaluator, "check"):
        evaluator.check(subject.data, subject.model)
    findings = evaluator(subject)
    assert findings.metrics
    assert all(math.isfinite(value) for value in findings.metrics.values())


@pytest.mark.parametrize("evaluator", [QueryKey(), KVCache()])
def test_evaluators_of_attention_are_refused(subject: Subject, evaluator: QueryKey | KVCache) -> None:
    with pytest.raises(ConfigError, match=r"ContextToken has none; leave it out, as in 'eval=\[loss,accuracy\]'"):
        evaluator.check(subject.data, subject.model)
    evaluator.check(subject.data, make_subject().model)


def test_losses_equal_those_of_all_logits(subject: Subject) -> None:
    losses, mask = subject.token_losses()
    expected, scored = reference_losses(subject)
    assert (mask == scored).all()
    torch.testing.assert_close(torch.tensor(losses).double(), torch.tensor(expected), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_continuations_of_a_shared_prompt(subject: Subject) -> None:
    """Read from the state after the prompt, they are as likely as in whole rows."""
    prompt = list(b"the quick brown fox jumps over ")
    continuations = [list(b"the lazy dog"), list(b"a"), list(b"it all, and")]
    findings = score(subject, [(prompt, continuation) for continuation in continuations])
    for nats, continuation in zip(findings, continuations, strict=True):
        row = torch.tensor([prompt + continuation])
        expected = -subject.model(row).log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = expected.gather(1, row[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(nats).float(), expected, atol=1e-5, rtol=1e-5)
