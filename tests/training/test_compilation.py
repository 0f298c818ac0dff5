"""torch.compile: the same numbers, used if it saves time, and skipped with one line if it does not work."""

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

needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on CPUs")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = ["precision=fp32", "model.num_layers=1", "pos_encoding=alibi"]
    return prepare(small_config(tmp_path_factory.mktemp("compile") / "run", *overrides))


@pytest.fixture
def batches(prepared: Run) -> list[Piece]:
    return [prepared.data.train.batch(np.arange(8 * i, 8 * i + 8)) for i in range(8)]


def new_step(prepared: Run) -> Step:
    model = build_model(prepared.cfg, prepared.data.tokenizer.vocab_size).train()
    return Step(model, prepared.optim, torch.device("cpu"), "fp32")


def losses(step: Step, batches: list[Piece]) -> list[float]:
    return [step([piece], 1e-3)[0].item() for piece in batches]


@needs_a_compiler
def test_a_compiled_model_trains_to_the_same_losses(prepared, batches, tmp_path):
    printed: list[str] = []
    step = new_step(prepared)
    assert compile_if_worthwhile(True, step, batches[0], 100, Runtime(cache_dir=str(tmp_path)), printed.append)
    assert step.batch_loss.compiled is not None
    assert not printed
    torch.testing.assert_close(losses(step, batches), losses(new_step(prepared), batches), rtol=0, atol=1e-5)


@pytest.fixture
def compiled_functions(monkeypatch):
    """torch.compile returns the function as it is; the fixture lists the functions."""
    calls: list[object] = []

    def compile_(function, **options):
        calls.append(function)
        return lambda ids: function(ids)

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


@pytest.mark.parametrize("least", [0, compilation._WORK])
def test_short_runs_are_neither_measured_nor_compiled(
    prepared, batches, tmp_path, compiled_functions, monkeypatch, least
):
    monkeypatch.setattr(compilation, "_WORK", least)
    step = new_step(prepared)
    assert not compile_if_worthwhile("auto", step, batches[0], 10_000, Runtime(cache_dir=str(tmp_path)), print)
    assert not compiled_functions
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("compiled", "chosen"), [(0.5, True), (1.0, False)])
def test_a_long_run_measures_once_and_compiles_if_that_saves_time(
    prepared, batches, tmp_path, compiled_functions, monkeypatch, compiled, chosen
):
    """A step takes a second, compiled half a second or as long; the next run reads what the first has measured."""

    def seconds(step: Step, piece: Piece) -> float:
        run_pass(step, piece)
        return compiled if step.batch_loss.compiled else 1.0

    run_pass = compilation._seconds
    monkeypatch.setattr(compilation, "_seconds", seconds)
    monkeypatch.setattr(compilation, "_WORK", 0)
    runtime, printed = Runtime(cache_dir=str(tmp_path)), []
    weights = [p.detach().clone() for p in new_step(prepared).parameters]
    for attempt in range(2):
        step = new_step(prepared)
        assert compile_if_worthwhile("auto", step, batches[0], 1000, runtime, printed.append) is chosen
        assert (step.batch_loss.compiled is not None) is chosen
        assert all(torch.equal(a, b) and b.grad is None for a, b in zip(weights, step.parameters, strict=True))
        assert len(printed) == 1, attempt
    (record,) = (tmp_path / "compile").glob("*.json")
    assert json.loads(record.read_text())["plain"] == 1.0
    assert len(compiled_functions) == (2 if chosen else 1)
    # Too few steps to win back the time of compiling.
    assert not pays(plain=1.0, compiled=0.9, compiling=30.0, steps=299)
    assert pays(plain=1.0, compiled=0.9, compiling=30.0, steps=301)


def test_a_failing_compiler_is_reported_in_one_line(prepared, batches, tmp_path, monkeypatch):
    def broken(function, **options):
        def call(ids):
            raise RuntimeError("no working C++ compiler found\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    printed: list[str] = []
    step = new_step(prepared)
    assert not compile_if_worthwhile(True, step, batches[0], 100, Runtime(cache_dir=str(tmp_path)), printed.append)
    assert printed == ["torch.compile does not work here, so the model runs uncompiled: no working C++ compiler found"]
    assert losses(step, batches) == losses(new_step(prepared), batches)
