from contextlib import nullcontext

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from newllm.data.dataset import Dataset
from newllm.effective_rank import effective_rank
from newllm.errors import ConfigError
from newllm.evaluation.subject import Subject
from newllm.two_phase.context_rank import EffectiveRank
from newllm.two_phase.context_token import ContextToken
from newllm.two_phase.dproj import DProjTransformer
from newllm.two_phase.recurrence import scan
from newllm.two_phase.stored_contexts import StreamRows
from tests.support.evaluation_subject import LENGTH, make_subject, tokens_of

TEXT = (
    "The recurrence carries a context from token to token: what a token begins from is where its predecessor ended. "
    "Made in parallel, every token begins from its predecessor's context of the pass before."
)


def context_token(num_input_tokens: int = 2) -> ContextToken:
    return ContextToken(3, 12, num_input_tokens, 8, init_std=0.3, tokens=257, seq_len=LENGTH, seed=1)


def dproj() -> DProjTransformer:
    """Its recurrence alone is looked at."""
    parts = {
        "attention": {"_target_": "newllm.attention.MultiHead"},
        "pos_encoding": {"_target_": "newllm.position.Rope"},
    }
    return DProjTransformer(**DPROJ, **parts, tokens=257, seq_len=LENGTH, seed=1)


DPROJ = {"embed_dim": 8, "hidden_size": 12, "num_layers": 1, "heads": 2, "mlp_size": 16, "init_std": 0.3}


def subject_of(model: torch.nn.Module, text: str = TEXT) -> Subject:
    config = OmegaConf.create({"eval": {}})
    rows = StreamRows(tokens_of(text), LENGTH)
    data = Dataset(rows, rows, None, None, {}, "", 0)  # type: ignore[arg-type]
    return Subject(model, data, torch.device("cpu"), nullcontext, 4, config)


@torch.no_grad()
def true_contexts(model: torch.nn.Module, tokens: np.ndarray) -> torch.Tensor:
    inputs = model.recurrent_inputs(torch.from_numpy(tokens)[None])
    return scan(model.recurrence, inputs, torch.zeros(1, model.recurrence.width))[0]


def test_ranks_of_all_layers_of_the_true_contexts():
    subject = subject_of(context_token())
    true = true_contexts(subject.model, subject.data.stream("val"))
    found = EffectiveRank()(subject)
    table = found.tables["effective_rank"]
    assert [row["layer"] for row in table] == [1, 2, 3]
    assert [row["rank"] for row in table] == pytest.approx(
        [effective_rank(true[:, layer]) for layer in range(3)], rel=1e-4
    )
    assert found.metrics["context/rank@val"] == table[-1]["rank"]
    assert found.metrics["context/rank_share@val"] == pytest.approx(table[-1]["rank"] / 12)
    assert f"all {len(true)} contexts, not centred" in found.body[0]
    centred = EffectiveRank(samples=100, centred=True)(subject)
    assert f"100 of {len(true)} contexts, centred" in centred.body[0]
    few = subject_of(context_token(), TEXT[:40])
    assert any("too low" in str(line) for line in EffectiveRank()(few).body)
    assert not any("too low" in str(line) for line in found.body)


@pytest.mark.parametrize("model", [context_token(1), context_token(3), dproj()], ids=["window 1", "window 3", "dproj"])
def test_parallel_passes_against_the_recurrence(model):
    """What k passes know of the text are the last k tokens; as many passes as tokens are the recurrence itself."""
    subject = subject_of(model, TEXT[:60])
    count = len(subject.data.stream("val"))
    whole = EffectiveRank(passes=count)(subject).metrics
    assert whole["context/parallel_passes"] == count
    assert whole["context/parallel_cosine_min"] == pytest.approx(1, abs=1e-6)
    assert whole["context/parallel_mse"] < 1e-10
    one, two = (EffectiveRank(passes=passes)(subject).metrics for passes in (1, 2))
    assert one["context/parallel_cosine"] < two["context/parallel_cosine"] < 1 - 1e-5
    assert one["context/parallel_cosine_min"] < one["context/parallel_cosine"]

    true = true_contexts(model, subject.data.stream("val"))[:, -1]
    with torch.no_grad():  # one pass from contexts that are all but zero
        inputs = model.recurrent_inputs(torch.from_numpy(subject.data.stream("val")))
        first = model.recurrence(torch.zeros(count, model.recurrence.width), inputs)[:, -1]
    assert one["context/parallel_mse"] == pytest.approx(float((first - true).square().mean()), rel=0.05)


def test_passes_end_when_contexts_have_converged():
    subject = subject_of(context_token())
    found = EffectiveRank(tokens=50)(subject)
    passes = int(found.metrics["context/parallel_passes"])
    assert 1 < passes <= 20
    assert "50 tokens" in found.body[-1]
    same = EffectiveRank(tokens=50, passes=passes)(subject).metrics
    assert same == found.metrics


def test_a_model_without_contexts_is_refused():
    subject = make_subject()
    with pytest.raises(ConfigError, match="eval=effective_rank"):
        EffectiveRank().check(subject.data, subject.model)
    EffectiveRank().check(subject_of(context_token()).data, context_token())


@pytest.mark.parametrize("option", ["samples", "passes", "tokens"])
def test_counts_below_one_are_refused(option):
    with pytest.raises(ConfigError, match=f"eval.effective_rank.{option}"):
        EffectiveRank(**{option: 0})
