"""The phase as a whole: broken off and gone on with, shared by runs, refused."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from newllm.errors import ConfigError, RunError
from newllm.training.context import Run
from newllm.training.signals import Interrupted, Signals
from newllm.two_phase import fixed_point
from newllm.two_phase.first_phase import Outcome, as_table, timeless
from newllm.two_phase.fixed_point import FixedPoint
from newllm.two_phase.iteration import Iteration
from newllm.two_phase.recurrence import scan
from tests.support.phases import lines, phase_and_run, small_cfg


def do(folder: Path, *overrides: str, **changes: Any) -> tuple[Run, Outcome]:
    phase, work = phase_and_run(small_cfg(*overrides), folder, **changes)
    phase.check(work.cfg, work.model, work.data)
    return work, phase.train(work)


def same(one: tuple[Run, Outcome], other: tuple[Run, Outcome]) -> None:
    """Weights, lines, metrics and contexts are equal to the last bit."""
    (work, outcome), (work2, outcome2) = one, other
    for a, b in zip(work.model.parameters(), work2.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert lines(work)[: len(lines(work2))] == lines(work2)
    assert timeless(outcome.metrics) == timeless(outcome2.metrics)
    assert torch.equal(outcome.data.train.contexts, outcome2.data.train.contexts)
    assert torch.equal(outcome.data.val.contexts, outcome2.data.val.contexts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Outcome]:
    """Done without a break."""
    return do(tmp_path_factory.mktemp("whole"))


def test_what_it_leaves(whole: tuple[Run, Outcome]) -> None:
    work, outcome = whole
    model, metrics = work.model, outcome.metrics
    assert not any(p.requires_grad for p in model.context_block.parameters())
    assert [line["iteration"] for line in lines(work)] == [2, 3, 4]
    assert all(line["phase"] == "fixed_point" for line in lines(work))
    assert metrics["phase1/iterations"] == 4
    assert metrics["phase1/steps"] == 3
    assert metrics["phase1/loss"] == lines(work)[-1]["phase1/loss"]
    assert 1 < metrics["context/rank@train"] < 24
    assert metrics["context/rank_share@train"] == metrics["context/rank@train"] / 24
    assert [row["iteration"] for row in as_table(outcome.lines)] == [2, 3, 4]
    assert work.directory.status()["progress"] | {"loss": 0} == {
        "phase": "fixed_point", "step": 4, "steps": 4, "loss": 0,
    }  # fmt: skip

    # Validation: the true recurrence from zeros. Training as published: noisy contexts, so another thing.
    for side, atol in (("val", 1e-5), ("train", None)):
        tokens = torch.from_numpy(work.data.stream(side).astype(np.int64))
        windows = model.recurrent_inputs(tokens)[None]
        true = scan(model.recurrence, windows.detach(), torch.zeros(1, 24))[0].detach()
        stored = getattr(outcome.data, side).contexts
        if atol:
            torch.testing.assert_close(stored, true, atol=atol, rtol=1e-5)
        else:
            assert (stored - true).abs().mean() > 0.01
    folder = next((work.runtime.cache_dir / "phase1").glob("*/meta.json")).parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "contexts.train.bin", "contexts.val.bin", "meta.json", "outcome.json", "state.safetensors",
    ]  # fmt: skip


def test_sequential_contexts_of_training(tmp_path: Path, whole: tuple[Run, Outcome]) -> None:
    work, outcome = do(tmp_path, "phase1.train_contexts=sequential")
    assert torch.equal(outcome.data.val.contexts, whole[1].data.val.contexts)
    windows = work.model.recurrent_inputs(torch.from_numpy(work.data.stream("train").astype(np.int64)))[None]
    true = scan(work.model.recurrence, windows.detach(), torch.zeros(1, 24))[0].detach()
    torch.testing.assert_close(outcome.data.train.contexts, true, atol=1e-5, rtol=1e-5)


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
        (fixed_point, "remove_contexts", 1),
    ],
)
def test_broken_off_anywhere_it_goes_on_to_the_same_bits(
    tmp_path: Path, whole: tuple[Run, Outcome], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
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
            do(tmp_path)
    same(do(tmp_path), whole)


def test_a_signal_stops_it_between_two_batches(tmp_path: Path, whole: tuple[Run, Outcome]) -> None:
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
            do(tmp_path, signals=Asked(batch))
    same(do(tmp_path), whole)


def test_a_second_run_takes_the_first_ones_result(
    tmp_path: Path, whole: tuple[Run, Outcome], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = do(tmp_path, directory=tmp_path / "first")
    with monkeypatch.context() as patch:
        patch.setattr(Iteration, "run", None)
        # What only concerns the second phase makes no other first one.
        second = do(tmp_path, "lr=0.5", "epochs=7", "phase1.stop=0.99", directory=tmp_path / "second")
    same(second, first)
    same(second, whole)
    assert "done before: taken from" in capsys.readouterr().out
    assert len(list((tmp_path / "cache" / "phase1").glob("*/meta.json"))) == 1
    do(tmp_path, "seed=1", directory=tmp_path / "third")
    assert len(list((tmp_path / "cache" / "phase1").glob("*/meta.json"))) == 2


def test_a_cache_that_is_gone_is_made_again_below_the_second_phase(tmp_path: Path, whole: tuple[Run, Outcome]) -> None:
    work, _ = do(tmp_path)
    work.directory.append_metrics({"step": 1})
    before = work.directory.metrics_file.read_bytes()
    contexts = next((tmp_path / "cache").glob("phase1/*/contexts.val.bin"))
    for remove in (contexts.unlink, lambda: shutil.rmtree(tmp_path / "cache")):
        remove()
        same(do(tmp_path), whole)
        assert work.directory.metrics_file.read_bytes() == before


def test_a_folder_of_its_own_and_of_another_configuration(tmp_path: Path, whole: tuple[Run, Outcome]) -> None:
    folder = tmp_path / "mine"
    same(do(tmp_path, f"phase1.folder={folder}"), whole)
    assert (folder / "outcome.json").exists()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"another configuration \(phase1.noise: 0.1 != 0.2\); name another"):
        do(tmp_path, f"phase1.folder={folder}", "phase1.noise=0.2")
    phase, work = phase_and_run(small_cfg(f"phase1.folder={folder}"), tmp_path)
    with torch.no_grad():
        work.model.embed.weight[0, 0] += 1
    with pytest.raises(ConfigError, match=r"another configuration \(embeddings.sha256: "):
        phase.train(work)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something other than a first phase; name an empty"):
        do(tmp_path, f"phase1.folder={tmp_path / 'other'}")


def test_no_convergence_ends_the_run_but_its_result_is_kept(
    tmp_path: Path, whole: tuple[Run, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whole[1].metrics["phase1/reached"] == 0
    said = r"after 4 iterations with \d+\.\d+% of the contexts converged, and 99\.00% are asked; .*convergence=false"
    for _ in range(2):
        with pytest.raises(ConfigError, match=said):
            do(tmp_path, "phase1.require_convergence=true")
    monkeypatch.setattr(Iteration, "run", None)
    same(do(tmp_path), whole)


def test_it_ends_when_enough_contexts_stay(tmp_path: Path) -> None:
    _, outcome = do(tmp_path, "phase1.threshold=100", "phase1.least=3", "phase1.require_convergence=true")
    assert outcome.metrics["phase1/iterations"] == 3
    assert outcome.metrics["phase1/reached"] == 1
    assert outcome.metrics["phase1/converged"] == 1


def test_real_text_comes_to_its_fixed_point_within_ten_iterations(tmp_path: Path) -> None:
    """As published for six layers, at a width and a rate for which a second is enough."""
    _, outcome = do(
        tmp_path, "model.layers=6", "model.embed_dim=64", "model.context_dim=64", "model.num_input_tokens=1",
        "phase1.lr=0.01", "phase1.iterations=10", "phase1.least=5", "phase1.require_convergence=true",
    )  # fmt: skip
    assert outcome.metrics["phase1/loss"] < 0.95 * outcome.metrics["phase1/bound"] < 0
    assert outcome.metrics["phase1/converged"] >= 0.99
    assert 0.7 < outcome.metrics["context/rank_share@train"] < 0.95


def test_a_loss_that_is_not_finite_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Phase 1 broke at iteration 3: the loss is (nan|-?inf); a lower rate"):
        do(tmp_path, "phase1.lr=1e38", "phase1.clip=null")


def test_bf16_contexts_take_half_the_room(tmp_path: Path) -> None:
    work, outcome = do(tmp_path, precision="bf16")
    assert outcome.data.val.contexts.dtype is torch.bfloat16
    file = next((tmp_path / "cache").glob("phase1/*/contexts.val.bin"))
    assert file.stat().st_size == len(work.data.stream("val")) * 2 * 24 * 2
    assert outcome.data.val.contexts[:, -1].isfinite().all()


def test_a_model_that_runs_its_recurrence_itself_needs_no_contexts(tmp_path: Path) -> None:
    cfg = small_cfg("phase1.batch_tokens=500", "phase1.iterations=5", "phase1.least=2", model=(
        "model=dproj_tiny", "phase1=oacd", "objective=oacd", "phase1.require_convergence=false",
    ))  # fmt: skip
    phase, work = phase_and_run(cfg, tmp_path)
    before = {name: p.clone() for name, p in work.model.named_parameters()}
    phase.check(cfg, work.model, work.data)
    outcome = phase.train(work)
    assert outcome.data is None
    inside = {id(p) for p in work.model.recurrence.parameters()}
    for name, p in work.model.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) not in inside)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"batch_tokens": 0}, "phase1.batch_tokens must be at least 1; 0 was given, try 8000"),
        ({"iterations": 1, "least": 1}, "phase1.iterations must be at least 2"),
        ({"least": 41}, "phase1.least must be from 1 to phase1.iterations=40"),
        ({"noise": -0.1}, "phase1.noise must be at least 0; -0.1 was given"),
        ({"threshold": 0.0}, "phase1.threshold must be above 0"),
        ({"stop": 1.5}, "phase1.stop is a share above 0 and at most 1; 1.5 was given"),
        ({"lr": 0.0}, "phase1.lr must be above 0"),
        ({"clip": 0.0}, "phase1.clip must be above 0, or null"),
        ({"start_std": -1.0}, "phase1.start_std must be at least 0"),
    ],
)
def test_options_out_of_range(option: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FixedPoint(**option, objective={"_target_": "newllm.two_phase.objectives.mcdl"}, seed=1)


def test_a_run_that_has_nothing_for_it(tmp_path: Path) -> None:
    phase, work = phase_and_run(small_cfg(), tmp_path)
    short = SimpleNamespace(stream=lambda side: np.zeros(1, np.uint16))
    with pytest.raises(ConfigError, match="needs a training text of at least 2 tokens, and there is 1"):
        phase.check(work.cfg, work.model, short)
    with pytest.raises(ConfigError, match="needs an objective to train on; type objective=mcdl"):
        FixedPoint(objective={}, seed=1)
    cfg = small_cfg(model=("model=tiny", "phase1=published", "objective=mcdl"))
    phase, work = phase_and_run(cfg, tmp_path)
    said = "phase1=published needs a model with a recurrence, as model=context_token; this run has model=tiny"
    with pytest.raises(ConfigError, match=said):
        phase.check(cfg, work.model, work.data)
    assert not list((tmp_path / "run").iterdir())


def test_the_stored_meta_data_say_what_it_is_made_of(whole: tuple[Run, Outcome]) -> None:
    meta = json.loads(next((whole[0].runtime.cache_dir / "phase1").glob("*/meta.json")).read_text())
    assert meta["phase1"]["noise"] == 0.1
    assert meta["model"]["context_dim"] == 24
    assert meta["objective"]["_target_"].endswith("mcdl")
    assert meta["train"]["tokens"] == len(whole[0].data.stream("train"))
    assert not {"folder", "require_convergence"} & set(meta["phase1"])
