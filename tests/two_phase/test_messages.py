"""The sentences of refusals, each complete: what is wrong, and what to type instead."""

from collections.abc import Callable
from functools import partial

import pytest

from newllm.errors import ConfigError
from newllm.two_phase.context_token import ContextState
from newllm.two_phase.embeddings import Corpus, FromRun, Pretrained
from newllm.two_phase.fixed_point import FixedPoint
from newllm.two_phase.objectives import mcdl
from newllm.two_phase.value_compression import Reconstruction

OBJECTIVE = {"_target_": "newllm.two_phase.objectives.mcdl"}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            partial(FixedPoint, lr=0.0, objective=OBJECTIVE, seed=1),
            "phase1.lr must be greater than 0, as in phase1.lr=0.002; got 0.",
        ),
        (
            partial(FixedPoint, least=41, objective=OBJECTIVE, seed=1),
            "phase1.least must lie in [1, 40], as in phase1.least=5; got 41.",
        ),
        (
            partial(FixedPoint, objective=None, seed=1),
            "this first phase needs an objective to train on; type objective=mcdl.",
        ),
        (
            partial(Reconstruction, patience=0),
            "phase1.patience must be 1 or greater, as in phase1.patience=1; got 0.",
        ),
        (partial(mcdl, weight=1.2), "objective.weight must lie in [0, 1], as in objective.weight=0.8; got 1.2."),
        (partial(Corpus, tokens=0), "embeddings.tokens must be 1 or greater, as in embeddings.tokens=5000; got 0."),
        (
            FromRun().find,
            "embeddings=run loads the embeddings of a finished run; type embeddings.run=FOLDER.",
        ),
        (
            Pretrained("./nowhere").find,
            "embeddings.name=./nowhere does not exist; it must be the name of a repository on the Hugging Face hub, as "
            "gpt2, or a folder with model.safetensors.",
        ),
        (
            partial(ContextState(10).advance, 11),
            "the cache has room for 10 tokens and 11 are needed; make it with capacity=11.",
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_refusals(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value) == sentence
