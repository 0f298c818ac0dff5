"""The first phase of V-DProj: its loss, the parameters that it trains, resuming, and the evaluator of its result."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import newllm
from newllm.errors import ConfigError
from newllm.evaluation.reconstruction import Reconstruction as Evaluator
from newllm.run import execute
from newllm.run.prepare import prepare
from newllm.run.stage import StageResult
from newllm.training.run_context import Run
from newllm.two_phase import value_compression
from newllm.two_phase.first_phase import timeless
from tests.support.phases import phase_and_run, small_cfg, timeless_lines

TINY = (
    "model=tiny", "model.hidden_size=32", "model.num_layers=2", "model.heads=2", "model.mlp_size=48", "batch_size=8",
    "attention=vdproj", "attention.reconstruction_weight=0", "phase1=reconstruction", "phase1.lr=1e-2",
    "phase1.epochs=3", "precision=fp32",
)  # fmt: skip


Weights = dict[str, torch.Tensor]


class Killed(BaseException):
    pass


def run_phase(run: Run, phase: Any) -> tuple[StageResult, Weights]:
    result = phase.run(run)
    return result, {name: p.detach().clone() for name, p in run.model.named_parameters()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, StageResult, Weights]:
    phase, run = phase_and_run(small_cfg(model=TINY), tmp_path_factory.mktemp("finished"))
    return run, *run_phase(run, phase)


def plain_error(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Mean over layers of MSE(restored, value), by hooks."""
    seen: list[torch.Tensor] = []
    hooks = [
        b.attention.compress.register_forward_hook(lambda _, given, out: seen.append(given[0])) for b in model.blocks
    ]
    hooks += [b.attention.restore.register_forward_hook(lambda _, given, out: seen.append(out)) for b in model.blocks]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return torch.stack([F.mse_loss(seen[i + 1], seen[i]) for i in range(0, len(seen), 2)]).mean()


def test_only_compression_and_restoration_are_trained_and_then_frozen(finished: Any) -> None:
    run, result, weights = finished
    fresh = newllm.build_model(run.cfg, run.data.tokenizer.vocab_size)
    for name, before in fresh.named_parameters():
        inside = "compress" in name or "restore" in name
        assert torch.equal(before, weights[name]) != inside
        assert run.model.get_parameter(name).requires_grad != inside
    errors = [line["phase1/val_loss"] for line in timeless_lines(run)]
    assert len(errors) == 3
    val = run.data.val.batch(np.arange(len(run.data.val)))[0]
    with torch.no_grad():
        assert errors[-1] < 0.7 * plain_error(fresh, val).item()
        assert errors[-1] == pytest.approx(plain_error(run.model, val).item(), rel=1e-5)
    assert result.metrics["phase1/val_loss"] == min(errors)
    with (run.directory.tables / "phase1.csv").open() as file:
        assert [float(row["val_loss"]) for row in csv.DictReader(file)] == errors


def test_the_first_step_is_that_of_adamw_on_the_plain_error(tmp_path: Path) -> None:
    """A batch of all rows, cut in pieces."""
    cfg = small_cfg("batch_size=64", "trainer.accumulate=3", "phase1.epochs=1", model=TINY)
    phase, run = phase_and_run(cfg, tmp_path)
    model = newllm.build_model(cfg, run.data.tokenizer.vocab_size)
    phase.run(run)
    pairs = [p for name, p in model.named_parameters() if "compress" in name or "restore" in name]
    error = plain_error(model, run.data.train.batch(np.arange(len(run.data.train)))[0])
    gradients = torch.autograd.grad(error, pairs)
    norm = torch.nn.utils.get_total_norm(gradients)
    with torch.no_grad():
        for pair, gradient in zip(pairs, gradients, strict=True):
            clipped = gradient / norm.clamp(min=1.0)
            pair -= 1e-2 * (0.01 * pair + clipped / (clipped.abs() + 1e-8))  # AdamW's first step
    assert timeless_lines(run)[0]["phase1/loss"] == pytest.approx(error.item(), rel=1e-5)
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name), atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("function", "call"), [("save_training", 2), ("save_training", 5), ("save_weights", 2), ("reconstruction_error", 9)]
)
def test_a_killed_phase_resumes_to_the_same_bits(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, call: int
) -> None:
    """With checkpoints after every step; killed before a checkpoint, before the best weights, or in a step."""
    calls, real = [], getattr(value_compression, function)

    def killing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*args, **options)

    for attempt in range(2):
        phase, run = phase_and_run(small_cfg(model=TINY), tmp_path)
        run.runtime.checkpoint_steps = 1
        if attempt == 0:
            monkeypatch.setattr(value_compression, function, killing)
            with pytest.raises(Killed):
                phase.run(run)
            monkeypatch.undo()
        else:
            result, weights = run_phase(run, phase)
    first_run, first_result, first_weights = finished
    assert timeless_lines(run) == timeless_lines(first_run)
    assert timeless(result.metrics) == timeless(first_result.metrics)
    for name, weight in first_weights.items():
        assert torch.equal(weights[name], weight)


def test_a_finished_phase_is_loaded(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, result, weights = finished
    before = run.directory.metrics_file.read_bytes()
    phase, again = phase_and_run(small_cfg(model=TINY), tmp_path, directory=run.directory.path)
    monkeypatch.setattr(value_compression, "layer_errors", None)  # nothing is computed
    same, weights_again = run_phase(again, phase)
    assert same == result
    assert all(torch.equal(weights_again[name], weight) for name, weight in weights.items())
    assert run.directory.metrics_file.read_bytes() == before


@pytest.mark.parametrize("keep", ["best", "last"])
def test_early_stopping_and_the_epoch_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
    errors = iter([3.0, 2.0, 2.5, 1.0])
    monkeypatch.setattr(value_compression._Training, "_validation_error", lambda self: next(errors))
    phase, run = phase_and_run(small_cfg(f"phase1.keep={keep}", "phase1.epochs=4", model=TINY), tmp_path)
    result = phase.run(run)
    assert result.metrics["phase1/epochs"] == 3
    assert result.metrics["phase1/val_loss"] == {"best": 2.0, "last": 2.5}[keep]
    checkpoints = run.directory.last_checkpoint.parent
    stored = {name: load_file(checkpoints / f"{name}.safetensors") for name in ("phase1", "phase1_best")}
    ours = run.model.blocks[0].attention.compress.weight
    equal = {name: torch.equal(tensors["model.0.0.weight"], ours) for name, tensors in stored.items()}
    assert equal == {"phase1": keep == "last", "phase1_best": keep == "best"}


def test_the_second_phase_does_not_train_the_compression(tmp_path: Path) -> None:
    cfg = small_cfg(
        f"hydra.run.dir={tmp_path}",
        "epochs=1",
        "eval=[loss,kv_cache,reconstruction]",
        "trainer.eval_weights=last",
        model=TINY,
    )
    assert execute.run(cfg) == 0
    trained = load_file(tmp_path / "checkpoints" / "last.safetensors")
    pairs = load_file(tmp_path / "checkpoints" / "phase1_best.safetensors")
    for layer in range(2):
        for number, name in enumerate(("compress", "restore")):
            kept = trained[f"model.blocks.{layer}.attention.{name}.weight"]
            assert torch.equal(kept, pairs[f"model.{layer}.{number}.weight"])
    first = newllm.build_model(cfg, 512)
    assert not torch.equal(trained["model.blocks.0.attention.qkv.weight"], first.blocks[0].attention.qkv.weight)
    results = newllm.load_run(tmp_path).results
    assert results["params/total"] - results["params/trainable"] == sum(
        p.numel() for p in pairs.values() if p.dim() == 2
    )
    with torch.no_grad():  # the evaluator's figures, by hooks
        model = newllm.load_run(tmp_path).model
        inputs = prepare(cfg).data.val.batch(np.arange(len(prepare(cfg).data.val)))[0]
        assert results["reconstruction/mse"] == pytest.approx(plain_error(model, inputs).item(), rel=1e-4)
    assert 0 < results["reconstruction/relative_error"] < 1
    assert results["kv_cache/reduction"] == 0.1875  # 32 + 20 numbers of 64
    assert results["kv_cache/max_logit_error"] < 1e-5


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["attention=mha", "phase1=reconstruction"], "phase1=none"),
        (["attention=vdproj", "phase1=reconstruction", "phase1.epochs=0"], r"phase1\.epochs"),
        (["attention=vdproj", "phase1=reconstruction", "phase1.lr=0"], r"phase1\.lr"),
        (["attention=mha", "eval=[loss,reconstruction]"], "attention=vdproj"),
    ],
)
def test_refusals(tmp_path: Path, overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        prepare(small_cfg(f"hydra.run.dir={tmp_path}/run", *overrides, model=()))
    assert not (tmp_path / "run").exists()


def test_the_evaluator_needs_a_batch() -> None:
    with pytest.raises(ConfigError, match=r"eval\.reconstruction\.batches"):
        Evaluator(batches=0)
