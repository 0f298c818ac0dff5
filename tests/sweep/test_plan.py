"""The plan of a sweep: its distinct runs, their states, and which are to do."""

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from newllm.config.identity import signature
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.store.run_names import short_names
from newllm.sweep.command import read
from newllm.sweep.launches import Policy, recorded
from newllm.sweep.plan import Plan, by_signature, plan

GRID = "pos_encoding=rope,alibi,nope theta=1e4,5e5 slope=0.0625,0.125 seed=1,2,3"


def plan_of(command: str, folder: Path, **options) -> Plan:
    runs = read(command.split(), config_dir=None, several=True).runs
    return plan(by_signature(run.config for run in runs), folder, combinations=len(runs), **options)


def finish(path: Path) -> None:
    RunDirectory(path).write_results({"val/ppl": 30.0})
    RunDirectory(path).end_attempt("done")


def test_36_combinations_are_15_runs_and_a_fourth_seed_adds_5(tmp_path: Path) -> None:
    first = plan_of(GRID, tmp_path)
    assert (first.combinations, len(first.runs), len(first.wanted)) == (36, 15, 15)
    assert len({run.path for run in first.runs}) == 15
    for path in first.freeze():
        finish(path)
    assert not plan_of(GRID, tmp_path).wanted
    more = plan_of(GRID + ",4", tmp_path)
    assert len(more.runs) == 20
    assert [run.config["seed"] for run in more.wanted] == [4] * 5
    assert [run.state for run in more.runs].count("done") == 15


def test_names_of_runs_hold_what_varies_and_short_names_no_more(tmp_path: Path) -> None:
    def short(command: str) -> list[str]:
        return [*short_names(run.path.name for run in plan_of(command, tmp_path).runs).values()]

    sizes = "model.hidden_size=256 model.num_layers=4 model.mlp_size=1024"
    fixed = f"samples=1000 batch_size=16 lr=0.001 {sizes} optim.clip=0.5"
    assert short(f"{fixed} facts=none,reversal optim.weight_decay=0.1,0.2") == [
        "facts_none-weight_decay0.1", "facts_none-weight_decay0.2",
        "facts_reversal-weight_decay0.1", "facts_reversal-weight_decay0.2",
    ]  # fmt: skip
    assert short(f"{fixed} pos_encoding=rope,rope_anchored_poly") == ["rope", "rope_anchored_poly"]
    assert short("lr=0.001,0.0010000001") == ["lr0.001", "lr0.0010000001"]
    assert short("pos_encoding.scaling=yarn,{kind:yarn,factor:8} seed=1") == [
        "scaling_yarn",
        "scaling_factor8_kindyarn",
    ]
    for parent in ("a", "b"):
        (tmp_path / parent / "tokenizer").mkdir(parents=True)
        (tmp_path / parent / "tokenizer" / "tokenizer.json").write_text(json.dumps({"name": parent}))
    assert short(f"data.tokenizer={tmp_path}/a/tokenizer,{tmp_path}/b/tokenizer") == ["tokenizer_a", "tokenizer_b"]


def test_a_run_is_recognised_however_it_was_typed_and_named(tmp_path: Path) -> None:
    (path,) = plan_of("theta=5e5", tmp_path).freeze()
    finish(path)
    renamed = path.rename(path.with_name("mine-" + path.name[-8:]))
    (run,) = plan_of("pos_encoding.theta=500000 runtime.threads=1", tmp_path).runs
    assert (run.path, run.state, run.wanted) == (renamed, "done", False)


def test_a_frozen_run_has_its_effective_configuration_and_is_queued(tmp_path: Path) -> None:
    (path,) = plan_of("pos_encoding=nope attention=mla kv_dim=16", tmp_path).freeze()
    directory = RunDirectory(path)
    assert directory.observed() == "queued"
    assert signature(directory.config()) == path.name[-8:]
    assert directory.config()["attention"]["kv_dim"] == 16


@pytest.mark.parametrize(
    ("state", "rerun", "wanted"),
    [
        ("done", "failed", False), ("done", "none", False), ("done", "all", True),
        ("failed", "failed", True), ("failed", "none", False), ("failed", "all", True),
        ("interrupted", "failed", True), ("interrupted", "none", True),
        ("queued", "none", True),
    ],
)  # fmt: skip
def test_rerun(state: str, rerun: str, wanted: bool, tmp_path: Path) -> None:
    (path,) = plan_of("seed=1", tmp_path).freeze()
    finish(path)
    RunDirectory(path).update_status(state=state)
    (run,) = plan_of("seed=1", tmp_path, rerun=rerun).runs
    assert (run.state, run.wanted) == (state, wanted)


def test_rerun_all_deletes_earlier_results(tmp_path: Path) -> None:
    (path,) = plan_of("seed=1", tmp_path).freeze()
    directory = RunDirectory(path)
    directory.end_attempt("done")
    directory.write_results({"val/ppl": 3.0})
    directory.last_checkpoint.parent.mkdir()
    directory.last_checkpoint.write_bytes(b"old")
    again = plan_of("seed=1", tmp_path, rerun="all")
    again.freeze(afresh=True)
    assert directory.observed() == "queued"
    assert not directory.results_file.exists()
    assert not directory.last_checkpoint.exists()


def test_runs_of_other_launchers_are_not_started_twice(tmp_path: Path) -> None:
    runs = plan_of("seed=1,2,3", tmp_path).freeze()
    RunDirectory(runs[0]).update_status(state="running", pid=os.getpid())
    with FileLock(runs[0] / ".lock"), recorded(tmp_path, "local", {}, Policy(), runs[:2]):
        planned = plan_of("seed=1,2,3", tmp_path).runs
    assert [(run.state, run.wanted) for run in planned] == [("running", False), ("queued", False), ("queued", True)]


def test_an_interrupted_run_is_continued(tmp_path: Path) -> None:
    (path,) = plan_of("seed=1", tmp_path).freeze()
    RunDirectory(path).begin_attempt()
    (run,) = plan_of("seed=1", tmp_path).runs
    assert (run.state, run.wanted) == ("interrupted", True)


def test_a_corrupt_status_is_left_alone(tmp_path: Path) -> None:
    (path,) = plan_of("seed=1", tmp_path).freeze()
    (path / "status.json").write_text("{not json")
    (run,) = plan_of("seed=1", tmp_path).runs
    assert (run.state, run.wanted) == ("unreadable", False)


def test_only_takes_runs_by_number(tmp_path: Path) -> None:
    assert [run.config["seed"] for run in plan_of("seed=1,2,3", tmp_path, only=[2]).wanted] == [3]
    with pytest.raises(ConfigError, match=r"only=\[3\]"):
        plan_of("seed=1,2,3", tmp_path, only=[3])


def test_relative_paths_of_data_are_frozen_as_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text(json.dumps({"text": "four score and seven years ago"}) + "\n")
    (path,) = plan_of("data=text data.path=text.jsonl", tmp_path / "sweep").freeze()
    assert RunDirectory(path).config()["data"]["path"] == str(tmp_path / "text.jsonl")
    (run,) = plan_of("data=text data.path=text.jsonl", tmp_path / "sweep").runs
    assert (run.path, run.state) == (path, "queued")
