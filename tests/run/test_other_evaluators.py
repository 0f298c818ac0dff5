"""Evaluators are no part of a training: a finished one is given those that it lacks, in sweeps and packs too."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import open_dict

import newllm
from newllm.config import effective, run_directory, signature
from newllm.config.identity import with_content
from newllm.errors import ConfigError
from newllm.evaluate.__main__ import main as evaluate
from newllm.loggers import Logger
from newllm.run.execute import run
from newllm.run.prepare import prepare
from newllm.store.run_directory import RunDirectory, metrics_of
from newllm.sweep.command import read
from newllm.sweep.plan import Plan, by_signature, plan
from newllm.sweep.state import after_worker, before_worker
from newllm.sweep.workers import work
from tests.support.small_runs import SMALL_RUN, small_config, timeless_results

FINISHED: list[dict[str, float]] = []


class KeepingLogger(Logger):
    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def finish(self, results: dict[str, float], tables: dict[str, Path]) -> None:
        FINISHED.append(results)

    def close(self) -> None: ...


def train(folder: Path, *overrides: str, broken: bool = False) -> RunDirectory:
    cfg = small_config(folder, "epochs=1", *overrides)
    cfg.logger = {"keeping": {"_target_": "tests.run.test_other_evaluators.KeepingLogger"}}
    if broken:
        cfg.eval = {"broken": {"_target_": "tests.support.small_runs.BrokenEvaluator"}}
    assert run(cfg) == 0
    return RunDirectory(folder)


@pytest.mark.parametrize("lost", ["results.json", "status.json"])
def test_lost_results_are_made_again_with_those_of_later_evaluators(tmp_path: Path, lost: str) -> None:
    directory = train(tmp_path, "eval=[loss]")
    train(tmp_path, "eval=[loss,position]")
    expected = timeless_results(tmp_path)
    (tmp_path / lost).unlink()
    train(tmp_path, "eval=[loss]")
    assert timeless_results(tmp_path) == expected
    assert [[*line["eval"]] for line in directory.evaluated()] == [["position"]]
    assert not directory.asked()


def test_train_gives_a_finished_run_the_evaluators_that_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = train(tmp_path / "run", "eval=[loss]")
    lines, results = timeless_results(directory.path)
    weights, mark = directory.last_checkpoint.read_bytes(), signature(directory.config())
    train(directory.path, "eval=[loss,position]")
    assert "evaluators that it lacks: position" in capsys.readouterr().out
    more_lines, more = timeless_results(directory.path)
    assert (more_lines, directory.last_checkpoint.read_bytes()) == (lines, weights)
    assert more.items() > results.items()
    assert any(name.startswith("val/ppl_by_position/") for name in more)
    assert (directory.path / "tables" / "position.csv").exists()
    assert [[*line["eval"]] for line in directory.evaluated()] == [["position"]]
    assert (directory.status()["attempt"], directory.observed()) == (1, "done")
    assert signature(directory.config()) == mark
    assert FINISHED[-1].keys() >= metrics_of(more).keys()
    before = directory.results_file.read_bytes()
    for fewer in ("eval=[position]", "eval=[]", "eval=[position,loss]"):
        train(directory.path, fewer)  # nothing is missing
    assert (len(directory.evaluated()), directory.results_file.read_bytes()) == (1, before)
    with pytest.raises(
        ConfigError, match=r"other options than eval\.loss\.weighting=batch_mean.* 'eval=\[loss\]' eval"
    ):
        train(directory.path, "eval=[loss]", "eval.loss.weighting=batch_mean")
    assert directory.results_file.read_bytes() == before


def test_an_unfinished_run_takes_the_evaluators_typed_last(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        train(tmp_path / "run", broken=True)
    directory = RunDirectory(tmp_path / "run")
    lines = directory.metrics()
    assert (directory.observed(), len(lines) > 0) == ("failed", True)
    train(directory.path, "eval=[loss,position]")  # goes on from its checkpoint, after the last step
    assert directory.metrics() == lines
    assert (directory.observed(), [*directory.config()["eval"]]) == ("done", ["loss", "position"])


def planned(folder: Path, *overrides: str, **options: Any) -> Plan:
    words = [*(word for word in SMALL_RUN if not word.startswith(("eval=", "epochs="))), "epochs=1", *overrides]
    runs = read(words, config_dir=None, several=True).runs
    return plan(by_signature(run.config for run in runs), folder, combinations=len(runs), **options)


def test_a_sweep_gives_its_finished_runs_the_evaluators_that_they_lack(tmp_path: Path) -> None:
    first = planned(tmp_path, "seed=1,2", "eval=[loss],[loss,position]")
    assert (first.combinations, len(first.runs)) == (4, 2)
    assert [[*run.config["eval"]] for run in first.runs] == [["loss", "position"]] * 2
    paths = planned(tmp_path, "seed=1,2", "eval=[loss]").freeze()
    assert work(*paths) == 0  # as a pack
    results = [timeless_results(path) for path in paths]
    assert not planned(tmp_path, "seed=1,2", "eval=[loss]").wanted

    again = planned(tmp_path, "seed=1,2", "eval=[loss,position]")
    assert [(run.state, [*run.missing]) for run in again.wanted] == [("to evaluate", ["position"])] * 2
    assert not planned(tmp_path, "seed=1,2", "eval=[loss,position]", rerun="none").wanted
    assert again.freeze() == paths
    directories = [RunDirectory(path) for path in paths]
    assert [directory.observed() for directory in directories] == ["done", "done"]  # all the time
    assert [before_worker(directory)[0] for directory in directories] == ["queued", "queued"]
    assert work(paths[0]) == 0
    assert [after_worker(directory, 0, False)[0] for directory in directories] == ["done", "failed"]
    assert work(*paths) == 0
    for path, (lines, former) in zip(paths, results, strict=True):
        assert not RunDirectory(path).waits()
        now = timeless_results(path)
        assert now[0] == lines
        assert now[1].items() > former.items()

    directories[0].ask({"broken": {"_target_": "tests.support.small_runs.BrokenEvaluator"}})
    assert work(paths[0]) == 1
    state, error = after_worker(directories[0], 1, False)
    assert (state, directories[0].observed(), timeless_results(paths[0])[1].items() > results[0][1].items()) == (
        "failed", "done", True
    )  # fmt: skip
    assert "KeyError" in str(error)
    again = planned(tmp_path, "seed=1,2", "eval=[loss]")
    assert [run.known.error for run in again.runs] == [error, None]
    assert not again.freeze()  # it no longer asks for that evaluator
    assert (directories[0].waits(), directories[0].status()["error"]) == (False, None)


def test_several_options_of_an_evaluator_are_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.loss\.weighting has several values .*newllm evaluate"):
        planned(tmp_path, "eval=[loss]", "eval.loss.weighting=token,batch_mean")


def test_effective_configurations_differ_in_evaluators_and_signatures_do_not(tmp_path: Path) -> None:
    one, two = (effective(small_config(tmp_path, f"eval=[{names}]")) for names in ("loss", "loss,qk"))
    assert one["eval"] != two["eval"]
    assert signature(one) == signature(two)
    assert json.dumps(one["choices"]["eval"]) == '["loss"]'


def test_a_run_whose_text_has_moved_goes_on_and_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, moved = tmp_path / "here" / "a.txt", tmp_path / "there" / "b.txt"
    text.parent.mkdir()
    text.write_text(Path(ast.__file__).read_text())
    with pytest.raises(KeyError):
        train(tmp_path / "run", "data=text", f"data.path={text}", broken=True)
    lines = RunDirectory(tmp_path / "run").metrics()
    moved.parent.mkdir()
    text.rename(moved)
    directory = train(tmp_path / "run", "data=text", f"data.path={moved}", "eval=[loss]")
    assert (directory.metrics(), directory.observed()) == (lines, "done")
    text.write_text(moved.read_text())
    moved.unlink()
    assert evaluate([str(directory.path)]) == 2
    assert f"data.path={moved} does not exist" in capsys.readouterr().err
    assert evaluate([str(directory.path), f"data.path={text}", "eval=[loss,position]"]) == 0
    assert not directory.evaluations.exists()  # the same text: the results are the run's own
    edited = text.read_text().replace("node", "nude")  # of the same size
    text.write_text(edited)
    before = directory.results_file.read_bytes()
    with pytest.raises(ConfigError, match=r"another configuration \(data\.path: content"):
        train(directory.path, "data=text", f"data.path={text}", "eval=[loss]")
    assert evaluate([str(directory.path), f"data.path={text}", "eval=[loss]"]) == 0  # another text, and named so
    assert directory.results_file.read_bytes() == before
    assert [folder.name.rpartition("-s42-")[0] for folder in directory.evaluations.iterdir()] == ["path-a.txt"]


def test_an_edited_text_makes_another_run_which_names_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    notes, text = [], Path(ast.__file__).read_text()
    for content in (text, text.replace("node", "nude")):
        Path("a.txt").write_text(content)
        cfg = newllm.compose([*SMALL_RUN, "data=text", "data.path=a.txt"])
        with open_dict(cfg):
            cfg.content = with_content(effective(cfg))["content"]
        notes.append([note for note in prepare(cfg).data.notes if "another run" in note])
        RunDirectory(run_directory(cfg)).freeze(effective(cfg))
    first = min(Path("outputs/runs").iterdir(), key=lambda folder: folder.stat().st_ctime_ns)
    expected = f"{first} has read other content of data.path=a.txt, so this is another run"
    assert notes == [[], [expected]]
