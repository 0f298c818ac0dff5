"""`newllm evaluate` on runs that were trained for a few steps."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import newllm
from newllm.analysis.frame import load_runs
from newllm.errors import ConfigError, RunError
from newllm.evaluate.__main__ import _show_together, main
from newllm.run.load import load_run
from newllm.store.atomic import json_text
from newllm.store.run_directory import RunDirectory
from tests.support.small_runs import small_config

ROOT = Path(__file__).parents[2]
FEW_EVALUATORS = ["precision=fp32", "eval=[qk,loss,position]"]


def train(directory: Path, *overrides: str) -> Path:
    from newllm.run.execute import run

    assert run(small_config(directory, "lr=0.003", *overrides)) == 0
    return directory


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with few evaluators; read only."""
    directory = tmp_path_factory.mktemp("sweep") / "run-s42"
    return train(directory, *FEW_EVALUATORS)


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / finished_run.name))


def contents(folder: Path) -> dict[str, bytes]:
    """The contents of all files except the lock."""
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "precision=bf16",
            "trainer.eval_weights=last",
            "facts=reversal",
            "eval=[loss,position,reversal,qk,kv_cache,rank,trigram]",
        ],
        ["precision=fp32", "facts=reversal", "pos_encoding=alibi", "attention=mla", "eval=[loss,kv_cache,rank]"],
    ],
)
def test_the_evaluation_of_a_run_is_reproduced_to_the_last_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    from newllm.training.loop import Loop

    # Makes the first epoch the best, so that best and last weights differ.
    monkeypatch.setattr(Loop, "_validation_loss", lambda loop: 5.0 + loop.progress.epoch)
    directory = train(tmp_path / "run", *overrides)
    before = contents(directory)
    assert results(directory)["val/best_epoch"] == 1
    capsys.readouterr()
    assert main([str(directory)]) == 0
    out = capsys.readouterr().out
    from_evaluators = [
        name for name in results(directory) if not name.startswith(("train/", "params/", "data/", "scored/"))
    ]
    others = {"val/best_ppl", "val/best_epoch", "memory/peak_bytes"}
    numbers = {name for name in from_evaluators if not name.startswith("speed/")} - others
    assert f"Reproduced: {len(numbers) + len(list((directory / 'tables').iterdir()))} results, all equal." in out
    assert contents(directory) == before


def test_a_different_number_is_listed_and_nothing_is_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = results(run)
    stored["val/loss"] += 1e-12
    RunDirectory(run).replace_files({"results.json": json_text(stored)})
    before = contents(run)
    assert main([str(run)]) == 1
    out, err = capsys.readouterr()
    assert f"{stored['val/loss']!r}" in out
    assert err.startswith("newllm: 1 of ")
    assert main([str(run), "eval=[loss,rank]"]) == 1
    assert contents(run) == before


def test_new_metrics_and_tables_are_added_and_the_others_stay(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, log = results(run), (run / "train.log").read_text()
    assert main([str(run), "eval=[loss,rank]", "eval.rank.positions=64"]) == 0
    after = results(run)
    assert {name: after[name] for name in before} == before
    assert {*after} - {*before} == {"rank/effective_rank", "rank/share", "scored/rank"}
    assert len((run / "tables" / "rank.csv").read_text().splitlines()) == 4
    assert (run / "train.log").read_text().startswith(log)
    assert "Effective rank" in (run / "train.log").read_text().removeprefix(log)
    (line,) = RunDirectory(run).evaluated()
    assert line["eval"]["rank"]["positions"] == 64
    assert (line["environment"]["threads"], line["environment"]["precision"]) == (1, "fp32")
    assert load_runs(run.parent)["rank/share"].tolist() == [after["rank/share"]]
    train(run, *FEW_EVALUATORS)  # the command that trained it still finds it done

    capsys.readouterr()
    whole = contents(run)
    assert main([str(run), "eval=[loss,rank]", "eval.rank.positions=64"]) == 0
    assert "Evaluated before" in capsys.readouterr().out
    assert main([str(run), "eval=[loss,rank]", "eval.rank.positions=64", "rerun=true"]) == 0
    assert "stored results were reproduced" in capsys.readouterr().out
    added_to = dict.fromkeys(("train.log", "evaluations.jsonl", "status.json"))
    assert {**contents(run), **added_to} == {**whole, **added_to}


def test_evaluator_options_that_change_stored_numbers_get_a_folder_of_their_own(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    options = ["eval.loss.weighting=batch_mean", "eval.loss.batch_size=3"]
    for typed in (options, options, ["eval.loss.weighting=batch_mean", "eval.loss.batch_size=5"]):
        assert main([str(run), "eval=[loss]", *typed]) == 0
    out = capsys.readouterr().out
    assert f"The results in {run} are of other options, and stay." in out
    assert "stored results were reproduced" in out
    assert {name: text for name, text in contents(run).items() if not name.startswith("evaluations/")} == before
    found = load_runs(run, evaluations=True)
    assert found["state"].tolist() == ["done"] * 3, found["error"].tolist()
    sizes = "loss.batch_size=3,loss.weighting=batch_mean", "loss.batch_size=5,loss.weighting=batch_mean"
    assert sorted(found["evaluated"].dropna()) == [*sizes]
    assert found["val/loss"].nunique() == 3
    assert found["config"].iloc[1]["eval"]["loss"]["weighting"] == "batch_mean"
    assert load_run(found["path"].iloc[1]).model is not None


def test_numbers_measured_in_training_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training measures val/loss in other batches than eval.loss, so the last bits may differ."""
    directory = train(tmp_path / "run", "eval=[]", "precision=fp32")
    stored = results(directory)
    stored["val/loss"] += 1e-7
    RunDirectory(directory).replace_files({"results.json": json_text(stored)})
    assert main([str(directory)]) == 2
    assert "name the ones you want" in capsys.readouterr().err
    assert main([str(directory), "eval=[loss]"]) == 0
    assert "val/loss stays" in capsys.readouterr().out
    assert results(directory)["val/loss"] == stored["val/loss"]
    assert results(directory)["val/bits_per_byte"] > 0
    assert main([str(directory), "eval=[loss]", "rerun=true"]) == 0
    assert results(directory)["val/loss"] == stored["val/loss"]


def test_other_settings_get_a_folder_of_their_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert main([str(run), "eval=[loss]", "theta=100"]) == 0
    assert "Differs from training: pos_encoding.theta is 100, was 10000" in capsys.readouterr().out
    (folder,) = (run / "evaluations").iterdir()
    assert folder.name.startswith("theta-100-s42-")
    assert {name: text for name, text in contents(run).items() if not name.startswith("evaluations/")} == before
    assert yaml.safe_load((folder / "config.yaml").read_text())["pos_encoding"]["theta"] == 100
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert results(folder)["val/loss"] != results(run)["val/loss"]
    assert results(folder)["params/total"] == results(run)["params/total"]

    found = results(folder)
    assert main([str(run), "eval=[position]", "pos_encoding.theta=100"]) == 0  # the same settings: more of them
    assert [*(run / "evaluations").iterdir()] == [folder]
    assert results(folder) == {**results(folder), **found}
    assert "val/ppl_by_position/0-16" in results(folder)
    assert (folder / "tables" / "position.csv").exists()
    capsys.readouterr()
    assert main([str(run), "eval=[loss]", "theta=1e2"]) == 0
    assert "Evaluated before" in capsys.readouterr().out
    assert main([str(run), "eval=[loss]", "theta=1e2", "rerun=true"]) == 0
    assert "stored results were reproduced" in capsys.readouterr().out
    assert main([str(folder)]) == 2
    assert "'eval=[loss]' theta=1e2 rerun=true" in capsys.readouterr().err

    loaded = load_run(folder)
    assert loaded.model.position.pairs() != load_run(run).model.position.pairs()
    weights = loaded.model.state_dict()
    assert all(bool((weights[name] == value).all()) for name, value in load_run(run).model.state_dict().items())


def test_tables_and_reports_separate_a_run_from_its_evaluations(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from newllm.analysis.comparable import split_comparable
    from newllm.analysis.run_groups import groups
    from newllm.status import main as status

    for seed in (1, 2):
        copy = Path(shutil.copytree(finished_run, tmp_path / f"run-s{seed}"))
        config = yaml.safe_load((copy / "config.yaml").read_text())
        config["seed"] = config["trainer"]["seed"] = seed
        (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert main([str(tmp_path), "eval=[loss]", "theta=100"]) == 0
    assert main([str(tmp_path / "run-s1"), "eval=[position]", "pos_encoding=alibi", "slope=0.25"]) == 0
    frame = load_runs(tmp_path, evaluations=True)
    assert frame["evaluated_from"].fillna("").tolist() == ["", "run-s1", "run-s1", "", "run-s2"]
    assert frame["sweep"].unique().tolist() == [str(tmp_path)]
    (part,) = split_comparable(frame)
    found = {group.label: group for group in groups(part.runs)}
    assert {*found} == {
        "rope · theta 10000", "rope · evaluated theta=100 · theta 100",
        "alibi · evaluated pos_encoding=alibi,slope=0.25",
    }  # fmt: skip
    assert [[*group.by_seed("params/total")] for group in found.values()] == [[1], [1, 2], [1, 2]]
    capsys.readouterr()
    assert status([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 runs: 2 done; 3 evaluations under other settings" in out
    assert [line.split()[-1] for line in out.splitlines() if line.strip().startswith("theta-100")] == ["s1", "s2"]
    assert status([str(tmp_path), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["evaluated_from"] for run in runs] == [None, "run-s1", "run-s1", None, "run-s2"]


def test_another_text_is_read_with_the_tokenizer_of_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for file in ("os", "io", "json/decoder", "json/encoder", "ast"):
        source = Path(os.__file__).parent / f"{file}.py"
        (text / f"{source.stem}.txt").write_text(source.read_text())
    assert main([str(run), "eval=[loss]", "data=text", f"data.path={text}", "samples=100"]) == 0
    (folder,) = (run / "evaluations").iterdir()
    assert results(folder)["data/val_rows"] == 10
    assert results(folder)["val/loss"] != results(run)["val/loss"]
    assert main([str(run), "eval=[loss]", "seq_len=64"]) == 0  # longer rows of the run's own text
    longer = RunDirectory(next(path for path in (run / "evaluations").iterdir() if "seq_len" in path.name))
    assert longer.results()["val/ppl"] > 0
    assert load_run(longer.path).model.seq_len == 32
    assert main([str(run), "data.tokenizer=gpt2", "eval=[loss]"]) == 2
    assert "its own tokenizer" in capsys.readouterr().err


def test_a_text_that_has_changed_since_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    source = (Path(os.__file__).parent / "ast.py").read_text()
    text.write_text(source)
    directory = train(tmp_path / "run", "data=text", f"data.path={text}", "samples=100", "eval=[loss]")
    assert main([str(directory)]) == 0
    text.write_text(source.replace("node", "nude"))
    before = contents(directory)
    assert main([str(directory)]) == 2
    assert "has changed since the run was trained" in capsys.readouterr().err
    assert contents(directory) == before


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["eval=[los]"], "did you mean eval=loss?"),
        (["eval=loss,rank"], "a list is written 'eval=[…]'"),
        (["eval.loss.wieghting=token"], "did you mean eval.loss.weighting?"),
        (["eval.rank.center=true"], "add it with 'eval=[qk,loss,position,rank]'"),
        (["eval.loss.weighting=sum"], "expected token or batch_mean"),
        (["evl=[loss]"], "did you mean eval?"),
        (["eval=[]"], "there is no evaluator to call"),
        (["model.num_layers=3"], "model is fixed by training"),
        (["seed=1"], "seed=1: trainer.seed is fixed by training; leave seed out"),
        (["slope=0.1"], "slope is an axis of pos_encoding="),
        (["hydra.run.dir=x"], "leave it out"),
        (["~eval.loss"], "can be deleted"),
        (["pos_encoding=learned"], "these settings make another model"),
        (["pos_encoding=alibbi"], "did you mean pos_encoding=alibi?"),
        (["rerun=maybe"], "expected true or false"),
        (["--rerun"], "unrecognized arguments: --rerun"),
        (["nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    finished_run: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(finished_run)
    assert main([str(finished_run), *typed]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("newllm: ")
    assert err.count("\n") == 1
    assert contents(finished_run) == before


def test_an_evaluation_of_several_runs_ends_with_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    same = {"params/total": 7.0, **{f"x/{i}": 1.0 for i in range(9)}}
    runs = {Path(f"tiny-{name}-s1-0000000{i}"): {**same, "val/ppl": 30.0 + i} for i, name in enumerate("ab")}
    _show_together(runs)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row and row[0] in ("run", "a", "b")] == [
        ["run", "val/ppl"],
        ["a", "30"],
        ["b", "31"],
    ]
    _show_together({path: {**same, **{f"x/{i}": float(n) for i in range(9)}} for n, path in enumerate(runs)})
    assert "and 3 more metrics that differ" in capsys.readouterr().out


def test_runs_that_fail_do_not_stop_the_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Path(shutil.copytree(run, run.with_name("a-broken")))
    (broken / "checkpoints" / "best.safetensors").write_bytes(b"no weights")
    queued = Path(shutil.copytree(run, run.with_name("b-queued")))
    RunDirectory(queued).update_status(state="interrupted")
    assert main([str(run.parent), "eval=[rank]"]) == 1
    out, err = capsys.readouterr()
    assert "rank/share" in results(run)
    assert "Skipped, not done: b-queued." in out
    assert f"newllm: a-broken: {broken / 'checkpoints' / 'best.safetensors'} cannot be read as a checkpoint" in err
    assert err.splitlines()[-1] == "newllm: failed: a-broken."
    assert main([str(queued)]) == 2
    assert "is not done but interrupted" in capsys.readouterr().err


def test_ctrl_c_changes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(run)

    def stop(*args: object) -> None:
        import signal

        os.kill(os.getpid(), signal.SIGINT)

    for overrides in (["eval=[rank]"], ["eval=[rank]", "theta=100"]):
        with monkeypatch.context() as patch:
            patch.setattr("newllm.evaluation.rank.EffectiveRank.__call__", stop)
            assert main([str(run), *overrides]) == 130
        assert contents(run) == before


def test_evaluate_from_python(run: Path) -> None:
    found = newllm.evaluate(run, ["eval=[rank]"])
    assert found == {name: results(run)[name] for name in ("rank/effective_rank", "rank/share")}
    with pytest.raises(ConfigError, match=r"eval=rank"):
        newllm.evaluate(run, ["eval=[rnak]"])
    stored = results(run)
    stored["rank/share"] = 2.0
    RunDirectory(run).replace_files({"results.json": json_text(stored)})
    with pytest.raises(RunError):
        newllm.evaluate(run, ["eval=[rank]"], rerun=True)


def test_help_needs_no_torch(finished_run: Path) -> None:
    code = (
        "import sys; from newllm.evaluate.__main__ import main\n"
        f"assert main(['--help']) == 0 and main([{str(finished_run)!r}, 'eval=[los]']) == 2\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "rank             Effective rank" in done.stdout
