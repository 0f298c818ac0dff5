from pathlib import Path

import pytest

from newllm.errors import ConfigError
from newllm.run.load import load_run
from newllm.store.atomic import replacing
from newllm.store.intact import read_json, write_json
from newllm.store.run_directory import RunDirectory


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    def break_off() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_floats_come_back_exactly_and_what_is_not_finite_as_null(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_results({"third": 1 / 3, "tiny": 5e-324, "broken": float("nan"), "count": 3})
    assert directory.results() == {"third": 1 / 3, "tiny": 5e-324, "broken": None, "count": 3}


def test_metrics_are_cut_back_to_a_known_length(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append_metrics({"step": 1, "train/loss": 0.1})
    length = directory.sync_metrics()
    directory.append_metrics({"step": 2, "train/loss": 0.2})
    directory.truncate_metrics(length)
    assert directory.metrics() == [{"step": 1, "train/loss": 0.1}]
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is shorter"):
        directory.truncate_metrics(length + 1)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.locked():
        directory.begin_attempt()
        with pytest.raises(ConfigError, match=r"process \d+ on"), RunDirectory(tmp_path / "run").locked():
            pass
    with directory.locked():  # free again
        assert directory.begin_attempt() == 2


def test_states_of_an_attempt(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / ".results.json.123.tmp").write_text("left by a killed process")
    assert directory.begin_attempt() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert directory.status()["state"] == "running"
    assert directory.status()["finished"] is None
    directory.end_attempt("failed", error="why")
    status = directory.status()
    assert (status["state"], status["error"]) == ("failed", "why")
    assert status["started"] <= status["finished"] <= status["updated"]


def test_tables_have_the_columns_of_all_rows(tmp_path: Path) -> None:
    RunDirectory(tmp_path).write_table("layers", [{"layer": 0, "q": 1.5}, {"layer": 1, "k": "a,b"}])
    assert (tmp_path / "tables" / "layers.csv").read_text().splitlines() == ["layer,q,k", "0,1.5,", '1,,"a,b"']


def test_load_run_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=tmp_path.name):
        load_run(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(ConfigError, match=r"status\.json"):
        RunDirectory(tmp_path).status()
