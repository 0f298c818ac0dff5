import math

import numpy as np
import pytest
import torch

from newllm.data.facts import ReversalFacts
from newllm.evaluation.reversal import Reversal
from newllm.evaluation.scoring import score


@torch.no_grad()
def nats_of(subject, text, prefix=()):
    """Nats of every byte of the text after its first token, one sentence at a time."""
    ids = torch.tensor([[*prefix, *text.encode()]])
    log_p = torch.log_softmax(subject.model(ids).double(), dim=-1)
    return -log_p[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1).numpy()


@pytest.fixture
def long_subject(subject):
    subject.model.seq_len = 128  # bytes: sentences are longer than the stand-in's rows
    return subject


def test_published_scoring_is_the_mean_of_sentence_means(long_subject):
    metrics = Reversal(scoring="sentence", backward="literal")(long_subject).metrics
    facts = ReversalFacts(backward="literal")
    for direction, questions in (("forward", facts.forward), ("backward", facts.backward)):
        means = [nats_of(long_subject, question.sentence[:63]).mean() for question in questions]
        assert metrics[f"reversal/{direction}_ppl"] == pytest.approx(math.exp(np.mean(means)), rel=1e-5)
    forward, backward = metrics["reversal/forward_ppl"], metrics["reversal/backward_ppl"]
    assert metrics["reversal/ratio"] == pytest.approx(forward / backward)
    assert metrics["reversal/gap"] == pytest.approx(backward - forward)


def test_answers_are_scored_alone_and_against_wrong_names(long_subject):
    findings = Reversal()(long_subject)
    eot = long_subject.data.tokenizer.eot_id
    facts = ReversalFacts(backward="well_formed")

    def of_name(question, name):
        return nats_of(long_subject, f"{question.prompt} {name}", [eot])[len(question.prompt) :]

    right = [of_name(question, question.answer) for question in facts.backward]
    assert findings.metrics["reversal/backward_ppl"] == pytest.approx(math.exp(np.concatenate(right).mean()), rel=1e-5)
    margins, beaten = [], []
    for question, own in zip(facts.backward, right, strict=True):
        wrong = [of_name(question, name).mean() for name in question.wrong]
        if wrong:
            margins.append(np.mean(wrong) - own.mean())
            beaten.append(np.mean([own.mean() < other for other in wrong]))
    assert findings.metrics["reversal/backward_margin"] == pytest.approx(np.mean(margins), abs=1e-5)
    assert findings.metrics["reversal/backward_accuracy"] == pytest.approx(np.mean(beaten))
    assert len(findings.tables["reversal"]) == 33
    paris = findings.tables["reversal"][0]
    assert paris["backward"] == "Paris is the capital of France"
    assert paris["backward_margin"] == pytest.approx(margins[0], abs=1e-5)


def test_without_trained_facts_the_numbers_are_a_control(long_subject):
    assert Reversal()(long_subject).body[0].startswith("Untrained control")
    long_subject.data.facts = ReversalFacts(repeats=7, backward="literal")
    body = Reversal()(long_subject).body
    assert "7 times" in body[0]
    assert "literal" in body[2]


@pytest.mark.slow
def test_a_model_that_knows_names_but_not_which_belong_together_is_at_chance(long_subject):
    """Trained on 100 forward sentences per fact, whose last names are drawn anew from the same relation each time."""
    random, groups = np.random.default_rng(0), {}
    for fact in ReversalFacts().facts:
        groups.setdefault(fact.names, []).append(fact)
    sentences = []
    for _ in range(100):
        for facts in groups.values():
            names = random.permutation([fact.object for fact in facts])
            sentences += [f"{fact.subject} {fact.relation} {name}" for fact, name in zip(facts, names, strict=True)]
    eot = long_subject.data.tokenizer.eot_id
    packed = [id_ for index in random.permutation(len(sentences)) for id_ in [*sentences[index].encode(), eot]]
    rows = torch.tensor(packed[: len(packed) // 64 * 64]).view(-1, 64)
    model = long_subject.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for batch in [batch for _ in range(3) for batch in rows.split(16)]:
        logits = model(batch[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    findings = Reversal()(long_subject)
    assert findings.metrics["reversal/forward_ppl"] < 2  # nats per byte: it knows the names
    for direction in ("forward", "backward"):
        values = [row[f"{direction}_accuracy"] for row in findings.tables["reversal"]]
        error = np.nanstd(values, ddof=1) / 28**0.5
        assert 0.02 < error < 0.1
        assert findings.metrics[f"reversal/{direction}_accuracy"] == pytest.approx(0.5, abs=2.5 * error)


def test_batches_do_not_change_the_nats(long_subject):
    texts = ["The capital of France is Paris", "Bill Gates founded Microsoft", "a b"]
    together = score(long_subject, [(list(text[:1].encode()), list(text[1:].encode())) for text in texts])
    for text, nats in zip(texts, together, strict=True):
        np.testing.assert_allclose(nats, nats_of(long_subject, text), atol=1e-5)


def test_long_prompts_lose_their_beginning(subject):
    ids = list(b"The author of The Great Gatsby was F. Scott Fitzgerald")
    (nats,) = score(subject, [(ids[:-5], ids[-5:])], longest=33)
    tail = nats_of(subject, bytes(ids[-33:]).decode())
    np.testing.assert_allclose(nats, tail[-5:], atol=1e-5)
