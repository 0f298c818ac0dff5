import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from newllm.errors import ConfigError, RunError
from newllm.run.execute import run
from newllm.run.load import load_run
from newllm.run.prepare import prepare
from newllm.store.run_directory import RunDirectory
from newllm.training.cross_entropy import linear_cross_entropy
from newllm.training.loop import Loop
from newllm.training.step import Step
from newllm.training.trainer import Trainer
from tests.support.small_runs import read_status, small_config, timeless_results


def test_without_shuffling_every_epoch_keeps_the_order_of_the_rows() -> None:
    data: Any = SimpleNamespace(train=range(5), order=lambda seed, epoch: np.array([3, 0, 4, 1, 2]))
    plain = Trainer(seed=1, epochs=2, batch_size=2, shuffle=False)
    assert [plain.order(data, epoch).tolist() for epoch in (0, 1)] == [[0, 1, 2, 3, 4]] * 2
    assert Trainer(seed=1, epochs=2, batch_size=2).order(data, 0).tolist() == [3, 0, 4, 1, 2]


def test_two_runs_of_one_seed_are_equal_and_another_seed_is_not(
    tmp_path: Path, do_run: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    assert do_run(tmp_path / "one") == 0
    assert do_run(tmp_path / "two", "runtime.device=cpu", "runtime.graph=true") == 0
    assert "runtime.graph=true has no effect on cpu" in " ".join(capsys.readouterr().out.split())
    assert timeless_results(tmp_path / "one") == timeless_results(tmp_path / "two")
    do_run(tmp_path / "other", "seed=43")
    assert timeless_results(tmp_path / "one") != timeless_results(tmp_path / "other")


def test_two_encodings_with_one_seed_train_on_the_same_batches(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch that reaches the step, facts included, hashed in order: whatever encoding or attention takes it."""
    step, digests = Step.__call__, {}

    def recording(self: Step, pieces: list, rate: float) -> tuple:
        for tensor in (tensor for piece in pieces for tensor in piece):
            digests[name].update(tensor.numpy().tobytes())
        return step(self, pieces, rate)

    monkeypatch.setattr(Step, "__call__", recording)
    for name, overrides in {
        "rope": ["pos_encoding=rope"],
        "alibi on mla": ["pos_encoding=alibi", "attention=mla", "kv_dim=8"],
        "another seed": ["pos_encoding=rope", "seed=43"],
    }.items():
        digests[name] = hashlib.sha256()
        assert do_run(tmp_path / name, "facts=reversal", "facts.repeats=2", *overrides) == 0
    rope, alibi, other = (digest.hexdigest() for digest in digests.values())
    assert rope == alibi
    assert rope != other


def test_the_run_directory_is_complete_and_can_be_read_back(tmp_path: Path, do_run: Callable[..., int]) -> None:
    directory = tmp_path / "run"
    assert do_run(directory, "eval=[loss,position,rank]") == 0
    files = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml", "environment.json", "status.json", "metrics.jsonl", "results.json", "train.log",
        "checkpoints/last.safetensors", "checkpoints/best.safetensors",
    }  # fmt: skip
    assert not [name for name in files if "tmp" in name or name.endswith((".pkl", ".pt", ".pth"))]
    assert read_status(directory)["state"] == "done"
    assert read_status(directory)["progress"]["step"] == read_status(directory)["progress"]["steps"]

    loaded = load_run(directory)
    prepared = prepare(small_config(tmp_path / "again"))
    inputs, labels = prepared.data.val.batch(np.arange(len(prepared.data.val)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=prepared.precision == "bf16"):
        loss = linear_cross_entropy(
            loaded.model.hidden(inputs).flatten(0, 1), loaded.model.head_weight, labels.flatten()
        )
    assert loss.item() == pytest.approx(loaded.results["val/loss"], rel=1e-4)
    assert loaded.results["val/ppl"] == pytest.approx(math.exp(loaded.results["val/loss"]))
    assert loaded.results["params/total"] == sum(p.numel() for p in prepared.model.parameters())
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("def run():")) == "def run():"


def test_metrics_have_a_line_per_logged_step_and_per_epoch(tmp_path: Path, do_run: Callable[..., int]) -> None:
    do_run(tmp_path / "run", "trainer.log_every=4")
    lines = RunDirectory(tmp_path / "run").metrics()
    steps = [line["step"] for line in lines if "train/lr" in line]
    epochs = [line for line in lines if "val/loss" in line]
    total = epochs[-1]["step"]
    assert steps == sorted({*range(4, total + 1, 4), total})
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert epochs[1]["train/loss"] < epochs[0]["train/loss"]


def test_status_json_has_the_progress_of_training(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, reports = RunDirectory.update_status, []

    def recording(self: RunDirectory, **changes) -> None:
        reports.extend([changes["progress"]] if "progress" in changes else [])
        real(self, **changes)

    monkeypatch.setattr(RunDirectory, "update_status", recording)
    do_run(tmp_path / "run", "trainer.log_every=3")
    losses = [line["train/loss"] for line in RunDirectory(tmp_path / "run").metrics() if "train/lr" in line]
    assert reports[0]["step"] == 3  # at once, and not only after some seconds
    assert reports[0]["loss"] == losses[0]
    assert reports[0]["tokens_per_second"] > 0
    assert reports[0]["seconds_left"] > reports[-1]["seconds_left"] == 0
    assert read_status(tmp_path / "run")["progress"]["loss"] == losses[-1]


def test_the_log_has_no_control_characters(tmp_path: Path, do_run: Callable[..., int], capfd) -> None:
    do_run(tmp_path / "run")
    printed = capfd.readouterr().out
    log = (tmp_path / "run" / "train.log").read_text()
    for text in (printed, log):
        assert "\x1b" not in text
        assert "\r" not in text
        assert str(tmp_path / "run") in text
        epochs = [line for line in text.splitlines() if line.strip().startswith(("1  ", "2  "))]
        assert len(epochs) == 2


def test_pieces_of_a_batch_make_the_same_steps(tmp_path: Path, do_run: Callable[..., int]) -> None:
    do_run(tmp_path / "whole", "precision=fp32")
    do_run(tmp_path / "pieces", "precision=fp32", "trainer.accumulate=3")
    whole, pieces = (RunDirectory(tmp_path / name).metrics() for name in ("whole", "pieces"))
    for one, two in zip(whole[:10], pieces[:10], strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-4)
        assert one["train/grad_norm"] == pytest.approx(two["train/grad_norm"], rel=1e-3)


def test_patience_stops_training_when_the_loss_stays_worse(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    monkeypatch.setattr(Loop, "_validation_loss", lambda self: next(losses))
    do_run(tmp_path / "run", "trainer.patience=2", "epochs=9", "eval=[]")
    epochs = [line for line in RunDirectory(tmp_path / "run").metrics() if "val/loss" in line]
    assert [line["val/loss"] for line in epochs] == [3.0, 2.0, 2.5, 2.1]
    assert [line["val/best"] for line in epochs] == [True, True, False, False]
    results = load_run(tmp_path / "run").results
    assert results["val/best_epoch"] == 2
    assert results["val/loss"] == 2.0  # of the weights that are evaluated
    assert results["val/best_ppl"] == pytest.approx(math.exp(2.0))


def test_the_mean_of_batch_means_picks_the_epoch(tmp_path: Path, do_run: Callable[..., int]) -> None:
    batches = ["batch_size=6", "eval=[loss]", "eval.loss.weighting=batch_mean", "eval.loss.batch_size=6"]  # 6, 6, 4
    do_run(tmp_path / "run", "precision=fp32", "trainer.validation=batch_mean", *batches)
    run = load_run(tmp_path / "run")
    (picked,) = [line["val/loss"] for line in run.files.metrics() if line.get("epoch") == run.results["val/best_epoch"]]
    assert picked == pytest.approx(run.results["val/loss"], rel=1e-6)
    do_run(tmp_path / "tokens", "precision=fp32", "batch_size=6", "eval=[]")
    assert load_run(tmp_path / "tokens").results["val/loss"] != pytest.approx(picked, rel=1e-6)


@pytest.mark.parametrize("weights", ["best", "last"])
def test_the_chosen_weights_are_evaluated_and_loaded(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    real = Loop._validation_loss
    monkeypatch.setattr(  # make the second epoch look worse than it is
        Loop, "_validation_loss", lambda self: real(self) + 9 * self.progress.epoch
    )
    do_run(tmp_path / "run", f"trainer.eval_weights={weights}")
    epochs = [line for line in RunDirectory(tmp_path / "run").metrics() if "val/loss" in line]
    true_losses = [line["val/loss"] - 9 * i for i, line in enumerate(epochs)]
    expected = true_losses[0 if weights == "best" else 1]
    results = load_run(tmp_path / "run").results
    assert results["val/loss"] == pytest.approx(expected, abs=1e-6)
    assert results["val/best_ppl"] == epochs[0]["val/ppl"]  # whichever weights are evaluated
    loaded, named = load_run(tmp_path / "run").model, load_run(tmp_path / "run", weights).model
    other = load_run(tmp_path / "run", "last" if weights == "best" else "best").model
    assert torch.equal(loaded.embed.weight, named.embed.weight)
    assert not torch.equal(loaded.embed.weight, other.embed.weight)


def test_a_loss_that_is_not_finite_fails_the_run_at_its_step(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Step.__call__, []

    def broken(self: Step, pieces, rate):
        calls.append(None)
        if len(calls) == 7:
            with torch.no_grad():
                self.model.head_weight.fill_(math.nan)
        return real(self, pieces, rate)

    monkeypatch.setattr(Step, "__call__", broken)
    with pytest.raises(RunError, match="diverged at step 7"):
        do_run(tmp_path / "run", "trainer.log_every=5")
    status = read_status(tmp_path / "run")
    assert status["state"] == "failed"
    assert "step 7" in status["error"]


def test_a_budget_of_tokens_ends_training_after_enough_steps(tmp_path: Path, do_run: Callable[..., int]) -> None:
    do_run(tmp_path / "run", "trainer.tokens=2000", "epochs=null")
    lines = [line for line in RunDirectory(tmp_path / "run").metrics() if "train/tokens" in line]
    assert lines[-1]["train/tokens"] - 8 * 32 < 2000 <= lines[-1]["train/tokens"]


def test_steps_of_epochs_and_of_tokens() -> None:
    assert Trainer(seed=1, epochs=6, batch_size=8).steps(rows=4830, seq_len=128) == (604, 3624)  # as published
    assert Trainer(seed=1, epochs=None, batch_size=8, tokens=10 * 128 + 1).steps(rows=10, seq_len=128) == (2, 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=0"], "batch_size must be at least 1"),
        (["epochs=-1"], "epochs must be at least 1"),
        (["trainer.tokens=100"], "either epochs or a budget of tokens"),
        (["trainer.patience=0"], "trainer.patience must be at least 1"),
        (["trainer.accumulate=9"], "trainer.accumulate=9 .* try trainer.accumulate=8"),
        (["trainer.devices=0"], "trainer.devices must be at least 1"),
        (["trainer.devices=9"], "trainer.devices=9 would cut batches of 8 rows .* try trainer.devices=8"),
        (["trainer.devices=3", "trainer.accumulate=4"], "into more pieces than rows; try trainer.accumulate=2"),
        (["lr=-1"], "optim.lr must be above 0"),
        (["precision=fp16"], "precision=fp16 needs a CUDA GPU, and this run is on cpu; precision=auto takes bf16"),
        (["runtime.device=tpu7"], "runtime.device=tpu7 is not on this machine"),
        (["model.hidden_size=30", "model.heads=4"], "not divisible"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(small_config(tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_a_done_run_shows_its_results_and_is_not_trained_again(
    tmp_path: Path, do_run: Callable[..., int], capfd
) -> None:
    directory = tmp_path / "run"
    do_run(directory)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    capfd.readouterr()
    assert do_run(directory) == 0
    assert "This run is done" in capfd.readouterr().out
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_a_done_run_shows_the_judgement_of_its_results(tmp_path: Path, do_run: Callable[..., int], capfd) -> None:
    def judgement() -> str:
        do_run(tmp_path / "run", "eval=[loss,trigram]")
        summary = capfd.readouterr().out.rpartition("Summary")[2]
        (line,) = [line for line in summary.splitlines() if " bits per byte: " in line]
        return line

    first = judgement()
    assert "a trigram model of the same training text" in first
    assert judgement() == first


def test_a_directory_of_another_configuration_is_refused(tmp_path: Path, do_run: Callable[..., int]) -> None:
    do_run(tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"optim.lr: [\d.]+ != 0.1"):
        do_run(tmp_path / "run", "lr=0.1")
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert do_run(tmp_path / "run", "runtime.checkpoint_seconds=5") == 0  # settings of the machine may differ


def test_a_failing_logger_does_not_end_the_run(
    tmp_path: Path, do_run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from newllm.loggers.logger import NoLogger

    def fail(self, step, metrics) -> None:
        raise OSError("the server has gone")

    monkeypatch.setattr(NoLogger, "log", fail)
    assert do_run(tmp_path / "run") == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("the server has gone") == 1


def test_environment_json_describes_the_machine(tmp_path: Path, do_run: Callable[..., int]) -> None:
    do_run(tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["threads"] == 1
    assert environment["command"]
    assert environment["precision"] in ("bf16", "fp32")
