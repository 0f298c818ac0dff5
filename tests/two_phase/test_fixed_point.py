"""The phase as a whole: interrupted and resumed, shared by runs, refused."""

import csv
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from newllm.errors import ConfigError, Interrupted, RunError
from newllm.run.stage import StageResult
from newllm.training.run_context import Run
from newllm.training.signals import Signals
from newllm.two_phase import fixed_point
from newllm.two_phase.first_phase import timeless
from newllm.two_phase.fixed_point import FixedPoint, Iteration
from newllm.two_phase.recurrence import scan
from tests.support.phases import phase_and_run, small_cfg, timeless_lines

RunAndResult = tuple[Run, StageResult]


def run_phase(folder: Path, *overrides: str, **changes: Any) -> RunAndResult:
    phase, run = phase_and_run(small_cfg(*overrides), folder, **changes)
    phase.check(run.cfg, run.model, run.data)
    return run, phase.run(run)


def assert_equal(one: RunAndResult, other: RunAndResult) -> None:
    """Weights, lines, metrics and contexts are equal to the last bit."""
    (run, result), (other_run, other_result) = one, other
    for a, b in zip(run.model.parameters(), other_run.model.parameters(), strict=True):
        assert torch.equal(a, b)
    other_lines = timeless_lines(other_run)
    assert timeless_lines(run)[: len(other_lines)] == other_lines
    assert timeless(result.metrics) == timeless(other_result.metrics)
    assert torch.equal(result.data.train.contexts, other_result.data.train.contexts)
    assert torch.equal(result.data.val.contexts, other_result.data.val.contexts)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunAndResult:
    return run_phase(tmp_path_factory.mktemp("uninterrupted"))


def test_weights_lines_metrics_and_files_of_the_phase(uninterrupted: RunAndResult) -> None:
    run, result = uninterrupted
    model, metrics = run.model, result.metrics
    assert not any(p.requires_grad for p in model.context_block.parameters())
    assert [line["iteration"] for line in timeless_lines(run)] == [2, 3, 4]
    assert all(line["phase"] == "fixed_point" for line in timeless_lines(run))
    assert metrics["phase1/iterations"] == 4
    assert metrics["phase1/steps"] == 3
    assert metrics["phase1/loss"] == timeless_lines(run)[-1]["phase1/loss"]
    assert 1 < metrics["context/rank@train"] < 24
    assert metrics["context/rank_share@train"] == metrics["context/rank@train"] / 24
    with (run.directory.tables / "phase1.csv").open() as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["2", "3", "4"]
    assert run.directory.status()["progress"] | {"loss": 0} == {
        "phase": "fixed_point", "step": 4, "steps": 4, "loss": 0,
    }  # fmt: skip

    # Validation: the true recurrence from zeros. Training as published: noisy contexts, so another thing.
    for side, atol in (("val", 1e-5), ("train", None)):
        tokens = torch.from_numpy(run.data.stream(side).astype(np.int64))
        windows = model.recurrent_inputs(tokens)[None]
        true = scan(model.recurrence, windows.detach(), torch.zeros(1, 24))[0].detach()
        stored = getattr(result.data, side).contexts
        if atol:
            torch.testing.assert_close(stored, true, atol=atol, rtol=1e-5)
        else:
            assert (stored - true).abs().mean() > 0.01
    folder = next((run.runtime.cache_dir / "phase1").glob("*/meta.json")).parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "contexts.train.bin", "contexts.val.bin", "hashes.json", "meta.json", "outcome.json", "state.safetensors",
    ]  # fmt: skip


def test_sequential_contexts_of_training(tmp_path: Path, uninterrupted: RunAndResult) -> None:
    run, result = run_phase(tmp_path, "phase1.train_contexts=sequential")
    assert torch.equal(result.data.val.contexts, uninterrupted[1].data.val.contexts)
    windows = run.model.recurrent_inputs(torch.from_numpy(run.data.stream("train").astype(np.int64)))[None]
    true = scan(run.model.recurrence, windows.detach(), torch.zeros(1, 24))[0].detach()
    torch.testing.assert_close(result.data.train.contexts, true, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Iteration, "draw_start", 1),
        (Iteration, "_step", 2),  # the end of an iteration, before anything of it is stored
        (fixed_point, "save_training", 1),
        (fixed_point, "save_training", 3),  # contexts on disk, the checkpoint is not
        (fixed_point, "write_lines", 3),  # the checkpoint is written, the line about it is not
        (fixed_point, "write_contexts", 1),
        (fixed_point, "write_contexts", 2),
        (fixed_point, "write_json", 1),
        (Iteration, "remove_contexts", 1),
    ],
)
def test_a_killed_phase_resumes_to_the_same_bits(
    tmp_path: Path, uninterrupted: RunAndResult, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
) -> None:
    class Killed(BaseException):
        pass

    real, calls = getattr(owner, name), []

    def killing(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing)
        with pytest.raises(Killed):
            run_phase(tmp_path)
    assert_equal(run_phase(tmp_path), uninterrupted)


def test_a_damaged_file_repeats_the_phase(
    tmp_path: Path, uninterrupted: RunAndResult, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = run_phase(tmp_path)
    folder = next((run.runtime.cache_dir / "phase1").glob("*/meta.json")).parent
    for file in sorted(path.name for path in folder.iterdir()):
        content = bytearray((folder / file).read_bytes())
        content[-2] ^= 1
        (folder / file).write_bytes(content)
        capsys.readouterr()
        assert_equal(run_phase(tmp_path), uninterrupted)
        assert "so phase 1 is repeated" in capsys.readouterr().out, file


def test_a_signal_stops_the_phase_between_two_batches(tmp_path: Path, uninterrupted: RunAndResult) -> None:
    class Asked(Signals):
        """A signal comes while the n-th batch is under way."""

        def __init__(self, batch: int) -> None:
            super().__init__()
            self.left = batch

        def check(self) -> None:
            self.left -= 1
            if self.left == 0:
                self.note(signal.SIGTERM)
            super().check()

    for batch in (1, 4, 6):
        with pytest.raises(Interrupted):
            run_phase(tmp_path, signals=Asked(batch))
    assert_equal(run_phase(tmp_path), uninterrupted)


def test_a_second_run_loads_the_result_of_the_first(
    tmp_path: Path, uninterrupted: RunAndResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_phase(tmp_path, directory=tmp_path / "first")
    with monkeypatch.context() as patch:
        patch.setattr(Iteration, "run", None)
        # Options of the second phase do not change the first one.
        second = run_phase(tmp_path, "lr=0.5", "epochs=7", "phase1.stop=0.99", directory=tmp_path / "second")
    assert_equal(second, first)
    assert_equal(second, uninterrupted)
    assert "done before: taken from" in capsys.readouterr().out
    assert len(list((tmp_path / "cache" / "phase1").glob("*/meta.json"))) == 1
    run_phase(tmp_path, "seed=1", directory=tmp_path / "third")
    assert len(list((tmp_path / "cache" / "phase1").glob("*/meta.json"))) == 2


def test_deleted_files_are_made_again_and_the_lines_of_the_second_phase_stay(
    tmp_path: Path, uninterrupted: RunAndResult
) -> None:
    run, _ = run_phase(tmp_path)
    run.directory.append_metrics({"step": 1})
    before = run.directory.metrics_file.read_bytes()
    contexts = next((tmp_path / "cache").glob("phase1/*/contexts.val.bin"))
    for remove in (contexts.unlink, lambda: shutil.rmtree(tmp_path / "cache")):
        remove()
        assert_equal(run_phase(tmp_path), uninterrupted)
        assert run.directory.metrics_file.read_bytes() == before


def test_a_named_folder_is_refused_to_another_configuration(tmp_path: Path, uninterrupted: RunAndResult) -> None:
    folder = tmp_path / "mine"
    assert_equal(run_phase(tmp_path, f"phase1.folder={folder}"), uninterrupted)
    assert (folder / "outcome.json").exists()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"phase1\.noise: 0\.1 != 0\.2"):
        run_phase(tmp_path, f"phase1.folder={folder}", "phase1.noise=0.2")
    phase, run = phase_and_run(small_cfg(f"phase1.folder={folder}"), tmp_path)
    with torch.no_grad():
        run.model.embed.weight[0, 0] += 1
    with pytest.raises(ConfigError, match=r"embeddings\.sha256"):
        phase.run(run)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"phase1\.folder="):
        run_phase(tmp_path, f"phase1.folder={tmp_path / 'other'}")


def test_without_convergence_the_run_ends_but_the_result_is_kept(
    tmp_path: Path, uninterrupted: RunAndResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert uninterrupted[1].metrics["phase1/reached"] == 0
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"phase1\.require_convergence=false"):
            run_phase(tmp_path, "phase1.require_convergence=true")
    monkeypatch.setattr(Iteration, "run", None)
    assert_equal(run_phase(tmp_path), uninterrupted)


def test_the_phase_ends_when_enough_contexts_have_converged(tmp_path: Path) -> None:
    _, result = run_phase(tmp_path, "phase1.threshold=100", "phase1.least=3", "phase1.require_convergence=true")
    assert result.metrics["phase1/iterations"] == 3
    assert result.metrics["phase1/reached"] == 1
    assert result.metrics["phase1/converged"] == 1


def test_real_text_reaches_its_fixed_point_within_ten_iterations(tmp_path: Path) -> None:
    """As published for six layers, at a width and a rate for which a second is enough."""
    _, result = run_phase(
        tmp_path, "model.layers=6", "model.embed_dim=64", "model.context_dim=64", "model.num_input_tokens=1",
        "phase1.lr=0.01", "phase1.iterations=10", "phase1.least=5", "phase1.require_convergence=true",
    )  # fmt: skip
    assert result.metrics["phase1/loss"] < 0.95 * result.metrics["phase1/bound"] < 0
    assert result.metrics["phase1/converged"] >= 0.99
    assert 0.7 < result.metrics["context/rank_share@train"] < 0.95


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"iteration 3.*phase1\.lr="):
        run_phase(tmp_path, "phase1.lr=1e38", "phase1.clip=null")


def test_bf16_contexts_take_half_the_space(tmp_path: Path) -> None:
    run, result = run_phase(tmp_path, precision="bf16")
    assert result.data.val.contexts.dtype is torch.bfloat16
    file = next((tmp_path / "cache").glob("phase1/*/contexts.val.bin"))
    assert file.stat().st_size == len(run.data.stream("val")) * 2 * 24 * 2
    assert result.data.val.contexts[:, -1].isfinite().all()


def test_a_model_that_runs_its_recurrence_itself_needs_no_contexts(tmp_path: Path) -> None:
    cfg = small_cfg("phase1.batch_tokens=500", "phase1.iterations=5", "phase1.least=2", model=(
        "model=dproj_tiny", "phase1=oacd", "objective=oacd", "phase1.require_convergence=false",
    ))  # fmt: skip
    phase, run = phase_and_run(cfg, tmp_path)
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    phase.check(cfg, run.model, run.data)
    result = phase.run(run)
    assert result.data is None
    inside = {id(p) for p in run.model.recurrence.parameters()}
    for name, p in run.model.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) not in inside)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_tokens": 0},
        {"iterations": 1, "least": 1},
        {"least": 41},
        {"noise": -0.1},
        {"threshold": 0.0},
        {"stop": 1.5},
        {"stop": 0.0},
        {"lr": 0.0},
        {"clip": 0.0},
        {"start_std": -1.0},
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"phase1.{next(iter(options))}"):
        FixedPoint(**options, objective={"_target_": "newllm.two_phase.objectives.mcdl"}, seed=1)


def test_runs_without_recurrence_text_or_objective_are_refused(tmp_path: Path) -> None:
    phase, run = phase_and_run(small_cfg(), tmp_path)
    short = SimpleNamespace(stream=lambda side: np.zeros(1, np.uint16))
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        phase.check(run.cfg, run.model, short)
    with pytest.raises(ConfigError, match="objective=mcdl"):
        FixedPoint(objective={}, seed=1)
    cfg = small_cfg(model=("model=tiny", "phase1=published", "objective=mcdl"))
    phase, run = phase_and_run(cfg, tmp_path)
    with pytest.raises(ConfigError, match="phase1=none"):
        phase.check(cfg, run.model, run.data)
    assert not list((tmp_path / "run").iterdir())


def test_the_meta_data_list_all_that_determines_the_result(uninterrupted: RunAndResult) -> None:
    meta = json.loads(next((uninterrupted[0].runtime.cache_dir / "phase1").glob("*/meta.json")).read_text())
    assert meta["phase1"]["noise"] == 0.1
    assert meta["model"]["context_dim"] == 24
    assert meta["objective"]["_target_"].endswith("mcdl")
    assert meta["train"]["tokens"] == len(uninterrupted[0].data.stream("train"))
    assert not {"folder", "require_convergence"} & set(meta["phase1"])
