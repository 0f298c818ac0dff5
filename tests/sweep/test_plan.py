"""What a sweep's plan finds: distinct runs, and what has become of them."""

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from newllm.config.identity import signature
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from newllm.sweep.command import read
from newllm.sweep.launches import Policy, recorded
from newllm.sweep.plan import Plan, plan

ISSUE = "pos_encoding=rope,alibi,nope theta=1e4,5e5 slope=0.0625,0.125 seed=1,2,3"


def planned(line: str, folder: Path, **options) -> Plan:
    runs = read(line.split(), config_dir=None, several=True).runs
    return plan([run.config for run in runs], folder, **options)


def finish(path: Path) -> None:
    RunDirectory(path).write_results({"val/ppl": 30.0})
    RunDirectory(path).end_attempt("done")


def test_36_combinations_are_15_runs_and_a_fourth_seed_adds_5(tmp_path: Path) -> None:
    first = planned(ISSUE, tmp_path)
    assert (first.combinations, len(first.runs), len(first.wanted)) == (36, 15, 15)
    assert len({job.path for job in first.runs}) == 15
    for path in first.freeze():
        finish(path)
    assert not planned(ISSUE, tmp_path).wanted
    more = planned(ISSUE + ",4", tmp_path)
    assert len(more.runs) == 20
    assert [job.config["seed"] for job in more.wanted] == [4] * 5
    assert [run.state for run in more.runs].count("done") == 15


def test_a_run_is_found_however_it_was_typed_and_named(tmp_path: Path) -> None:
    (path,) = planned("theta=5e5", tmp_path).freeze()
    finish(path)
    renamed = path.rename(path.with_name("mine-" + path.name[-8:]))
    (job,) = planned("pos_encoding.theta=500000 runtime.threads=1", tmp_path).runs
    assert (job.path, job.state, job.wanted) == (renamed, "done", False)


def test_a_frozen_run_holds_its_effective_configuration_and_waits(tmp_path: Path) -> None:
    (path,) = planned("pos_encoding=nope attention=mla kv_dim=16", tmp_path).freeze()
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
    (path,) = planned("seed=1", tmp_path).freeze()
    finish(path)
    RunDirectory(path).update_status(state=state)
    (job,) = planned("seed=1", tmp_path, rerun=rerun).runs
    assert (job.state, job.wanted) == (state, wanted)


def test_rerun_all_forgets_what_was_trained(tmp_path: Path) -> None:
    (path,) = planned("seed=1", tmp_path).freeze()
    directory = RunDirectory(path)
    directory.end_attempt("done")
    directory.write_results({"val/ppl": 3.0})
    directory.last_checkpoint.parent.mkdir()
    directory.last_checkpoint.write_bytes(b"old")
    again = planned("seed=1", tmp_path, rerun="all")
    again.freeze(afresh=True)
    assert directory.observed() == "queued"
    assert not directory.results_file.exists()
    assert not directory.last_checkpoint.exists()


def test_what_others_work_on_is_not_started_twice(tmp_path: Path) -> None:
    runs = planned("seed=1,2,3", tmp_path).freeze()
    RunDirectory(runs[0]).update_status(state="running", pid=os.getpid())
    with FileLock(runs[0] / ".lock"), recorded(tmp_path, "local", {}, Policy(), runs[:2]):
        jobs = planned("seed=1,2,3", tmp_path).runs
    assert [(job.state, job.wanted) for job in jobs] == [("running", False), ("queued", False), ("queued", True)]


def test_a_cut_off_run_is_taken_up_again(tmp_path: Path) -> None:
    (path,) = planned("seed=1", tmp_path).freeze()
    RunDirectory(path).begin_attempt()
    (job,) = planned("seed=1", tmp_path).runs
    assert (job.state, job.wanted) == ("interrupted", True)


def test_a_corrupt_status_is_left_alone(tmp_path: Path) -> None:
    (path,) = planned("seed=1", tmp_path).freeze()
    (path / "status.json").write_text("{not json")
    (job,) = planned("seed=1", tmp_path).runs
    assert (job.state, job.wanted) == ("unreadable", False)


def test_only_takes_runs_by_number(tmp_path: Path) -> None:
    assert [job.config["seed"] for job in planned("seed=1,2,3", tmp_path, only=[2]).wanted] == [3]
    with pytest.raises(ConfigError, match=r"only=\[3\]"):
        planned("seed=1,2,3", tmp_path, only=[3])


def test_relative_paths_of_data_are_frozen_as_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text(json.dumps({"text": "four score and seven years ago"}) + "\n")
    (path,) = planned("data=text data.path=text.jsonl", tmp_path / "sweep").freeze()
    assert RunDirectory(path).config()["data"]["path"] == str(tmp_path / "text.jsonl")
    (job,) = planned("data=text data.path=text.jsonl", tmp_path / "sweep").runs
    assert (job.path, job.state) == (path, "queued")
