"""torch.compile: the same numbers, chosen where it pays back, and left out in one line where it does not work."""

import json
import shutil

import numpy as np
import pytest
import torch

from newllm.model import build_model
from newllm.run.prepare import prepare
from newllm.runtime import Runtime
from newllm.training import compilation
from newllm.training.compilation import compile_if_worthwhile, pays
from newllm.training.run_context import Run
from newllm.training.step import Piece, Step
from tests.support.small_runs import small_config

needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants g++ on CPU")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = ["precision=fp32", "model.num_layers=1", "pos_encoding=alibi"]
    return prepare(small_config(tmp_path_factory.mktemp("compile") / "run", *overrides))


@pytest.fixture
def batches(prepared: Run) -> list[Piece]:
    return [prepared.data.train.batch(np.arange(8 * i, 8 * i + 8)) for i in range(8)]


def fresh(prepared: Run) -> Step:
    model = build_model(prepared.cfg, prepared.data.tokenizer.vocab_size).train()
    return Step(model, prepared.optim, torch.device("cpu"), "fp32")


def losses(step: Step, batches: list[Piece]) -> list[float]:
    return [step([piece], 1e-3)[0].item() for piece in batches]


@needs_a_compiler
def test_a_compiled_model_trains_to_the_same_losses(prepared, batches, tmp_path):
    said: list[str] = []
    step = fresh(prepared)
    assert compile_if_worthwhile(True, step, batches[0], 100, Runtime(cache_dir=str(tmp_path)), said.append)
    assert step.batch_loss.compiled is not None
    assert not said
    torch.testing.assert_close(losses(step, batches), losses(fresh(prepared), batches), rtol=0, atol=1e-5)


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile hands the function back, and counts; passes take the times that a test gives."""
    calls: list[object] = []

    def compile_(function, **options):
        calls.append(function)
        return lambda ids: function(ids)

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


@pytest.mark.parametrize("least", [0, compilation._WORK])
def test_short_runs_are_left_as_they_are_without_a_measurement(
    prepared, batches, tmp_path, no_compiler, monkeypatch, least
):
    monkeypatch.setattr(compilation, "_WORK", least)
    step = fresh(prepared)
    assert not compile_if_worthwhile("auto", step, batches[0], 10_000, Runtime(cache_dir=str(tmp_path)), print)
    assert not no_compiler
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("compiled", "chosen"), [(0.5, True), (1.0, False)])
def test_a_long_run_measures_once_and_takes_what_pays(
    prepared, batches, tmp_path, no_compiler, monkeypatch, compiled, chosen
):
    """A step of a second, compiled half a second or none less; the next run reads what the first has found."""

    def seconds(step: Step, piece: Piece) -> float:
        passed(step, piece)
        return compiled if step.batch_loss.compiled else 1.0

    passed = compilation._seconds
    monkeypatch.setattr(compilation, "_seconds", seconds)
    monkeypatch.setattr(compilation, "_WORK", 0)
    runtime, said = Runtime(cache_dir=str(tmp_path)), []
    weights = [p.detach().clone() for p in fresh(prepared).parameters]
    for attempt in range(2):
        step = fresh(prepared)
        assert compile_if_worthwhile("auto", step, batches[0], 1000, runtime, said.append) is chosen
        assert (step.batch_loss.compiled is not None) is chosen
        assert all(torch.equal(a, b) and b.grad is None for a, b in zip(weights, step.parameters, strict=True))
        assert len(said) == 1, attempt
    (record,) = (tmp_path / "compile").glob("*.json")
    assert json.loads(record.read_text())["plain"] == 1.0
    assert len(no_compiler) == (2 if chosen else 1)
    # Too few steps to win back the time of compiling.
    assert not pays(plain=1.0, compiled=0.9, compiling=30.0, steps=299)
    assert pays(plain=1.0, compiled=0.9, compiling=30.0, steps=301)


def test_where_the_compiler_fails_one_line_says_so(prepared, batches, tmp_path, monkeypatch):
    def broken(function, **options):
        def call(ids):
            raise RuntimeError("no working C++ compiler found\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    said: list[str] = []
    step = fresh(prepared)
    assert not compile_if_worthwhile(True, step, batches[0], 100, Runtime(cache_dir=str(tmp_path)), said.append)
    assert said == ["torch.compile does not work here, so the model runs uncompiled: no working C++ compiler found"]
    assert losses(step, batches) == losses(fresh(prepared), batches)
