"""A training step waits for no number and makes no tensor on the CPU: tensors of the meta device hold no numbers, so
that reading one, or mixing it with the CPU's, is an error.

Every encoding is tried with every attention and every model of conf/: each pair with one model, in turn, and the other
models with `-m slow`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from newllm import conformance
from newllm.attention import kernels
from newllm.config.values import signature_of
from newllm.errors import ConfigError
from newllm.model import LanguageModel, build_model
from newllm.training.optimizer import AdamW
from newllm.training.step import Piece, Step
from newllm.two_phase.context_token import ContextToken
from newllm.two_phase.stored_contexts import ContextReader, ContextRows
from tests.support.pairs import ATTENTIONS, ENCODINGS, MODELS, model_config, node

SIZES = {
    "hidden_size": 32, "num_layers": 1, "heads": 2, "mlp_size": 32, "embed_dim": 48, "layers": 2, "context_dim": 16,
    "vocab_size": conformance.VOCABULARY,
}  # fmt: skip
META = torch.device("meta")


def sized(model: str) -> dict[str, Any]:
    """The options of a model of conf/, with small sizes."""
    return {key: SIZES.get(key, value) for key, value in node("model", model).items()}


def combinations() -> Iterator[Any]:
    """(encoding, attention, model), and (none, none, model) for a model that takes neither."""
    models = {str(sized(name)): name for name in MODELS}.values()  # those that differ in more than sizes
    takes = {name: "attention" in signature_of(node("model", name)["_target_"]).handed for name in models}
    taking = [name for name in models if takes[name]]
    yield from (pytest.param("none", "none", name, id=name) for name in models if not takes[name])
    for row, encoding in enumerate(ENCODINGS):
        for column, attention in enumerate(ATTENTIONS):
            for number, model in enumerate(taking):
                marks = [] if (row + column) % len(taking) == number else [pytest.mark.slow]
                yield pytest.param(encoding, attention, model, id=f"{encoding}-{attention}-{model}", marks=marks)


@pytest.fixture
def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())  # has no meta device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)


def step_on_meta(model: LanguageModel, piece: Piece) -> None:
    """A training step, after which no number is known."""
    step = Step(model.train(), AdamW(lr=1e-3, betas=[0.9, 0.95]), META, "fp32")
    loss, norm, scored = step([piece], 1e-3)
    assert loss.is_meta
    assert norm.is_meta
    assert scored == piece[1].numel()


@pytest.mark.xdist_group("meta")  # torch takes two seconds to get ready
@pytest.mark.usefixtures("without_autocast")
@pytest.mark.parametrize(("encoding", "attention", "model"), combinations())
def test_a_training_step_reads_nothing_back(
    encoding: str, attention: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_SHORT", 4)  # so that a few tokens take the kernel of long rows
    ids = conformance.token_ids()[:1, :6]
    try:
        with META:
            small = build_model(model_config(encoding, attention, sized(model), 12), tokens=conformance.VOCABULARY)
    except ConfigError as refusal:
        pytest.skip(str(refusal))
    step_on_meta(small, (ids, ids))


@pytest.mark.xdist_group("meta")
@pytest.mark.usefixtures("without_autocast")
def test_a_step_on_stored_contexts_reads_nothing_back() -> None:
    with META:
        model = ContextToken(2, 16, 3, 24, tokens=50, seq_len=6, seed=0)
    rows = ContextRows(np.arange(25), 6, torch.zeros(25, 2, 16), window=3)
    step_on_meta(ContextReader(model, torch.float32), rows.batch(np.array([0, 2])))
