"""Estimated costs of planned runs, from the costs of finished runs."""

import json
from pathlib import Path

import pytest

from newllm.config import compose, effective
from newllm.store.run_directory import RunDirectory
from newllm.sweep.display import aligned
from newllm.sweep.plan import by_signature, plan
from newllm.sweep.plan_table import Estimates, show


def make_finished_run(folder: Path, seconds: float, *overrides: str) -> None:
    directory = RunDirectory(folder)
    directory.freeze(effective(compose(overrides)))
    directory.results_file.write_text(json.dumps({"speed/wall_seconds": seconds, "params/total": 7}))


def test_time_is_that_of_the_most_similar_runs_scaled_by_tokens(tmp_path: Path) -> None:
    make_finished_run(tmp_path / "a", 10.0, "seed=1", "samples=100")
    make_finished_run(tmp_path / "b", 14.0, "seed=2", "samples=100")
    make_finished_run(tmp_path / "c", 50.0, "lr=0.01", "samples=100")
    estimates = Estimates([tmp_path, tmp_path / "nowhere"])

    def seconds(*overrides: str) -> float | None:
        return estimates.seconds(effective(compose(overrides)))

    assert seconds("seed=3", "samples=100") == pytest.approx(12.0)  # seeds of the same run alone
    assert seconds("samples=300") == pytest.approx(3 * (10 + 14 + 50) / 3)  # another size: all of that model
    assert seconds("pos_encoding=nope", "samples=100") == pytest.approx((10 + 14 + 50) / 3)  # by the model alone
    assert seconds("model=llama_50m") is None
    assert Estimates([]).seconds(effective(compose([]))) is None


def test_parameters_are_counted_or_known_from_a_finished_run(tmp_path: Path) -> None:
    make_finished_run(tmp_path / "a", 10.0, "data.tokenizer=some/where", "seed=1")
    estimates = Estimates([tmp_path])
    assert estimates.parameters(effective(compose(["seed=2"]))) == 1_066_112
    assert estimates.parameters(effective(compose(["data.tokenizer=some/where", "seed=2"]))) == 7
    assert estimates.parameters(effective(compose(["data.tokenizer=some/where", "pos_encoding=nope"]))) is None


def test_former_runs_with_the_text_and_model_of_a_plan_are_found(tmp_path: Path) -> None:
    make_finished_run(tmp_path / "a", 1.0, "seed=1")
    make_finished_run(tmp_path / "b", 1.0, "seed=2", "pos_encoding=nope")
    make_finished_run(tmp_path / "c", 1.0, "samples=100")
    make_finished_run(tmp_path / "d", 1.0, "model.hidden_size=64")
    found = Estimates([tmp_path]).same_text_and_model([effective(compose(["pos_encoding=alibi"]))])
    assert {folder.name for folder in found} == {"a", "b"}


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [{"run": "0", "theta": "1e4", "slope": ""}, {"run": "10", "theta": "文文文"}]
    assert aligned(rows, {"theta"}) == ["run  theta", "  0  1e4", " 10  文文文"]


def test_a_plan_has_the_numbers_for_only_and_those_of_begun_runs_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = by_signature(effective(compose([f"seed={seed}"])) for seed in (1, 2))
    plan(runs, Path("sweep"), only=[1]).freeze()
    show(plan(runs, Path("sweep")), whole=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["plan", "#"], ["0", "nano"], ["1", "0"]]
    assert "only= takes the numbers under plan" in lines[3]
