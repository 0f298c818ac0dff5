import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from newllm.analysis.frame import load_runs
from newllm.config.identity import stored_signature
from newllm.errors import ConfigError
from newllm.run.load import load_run
from newllm.store import intact, run_directory
from newllm.store.intact import check_file, file_sha256, read_json, write_json
from newllm.store.run_directory import RunDirectory
from newllm.sweep.state import read_states
from tests.campaigns.damage import DAMAGES
from tests.support.run_folders import config

RESULTS = {"val/ppl": 100.25, "data/val_tokens": 7680, "data/bytes_per_token": 3.16}


def finished_run(path: Path, seed: int = 1) -> RunDirectory:
    run = RunDirectory(path)
    with run.locked():
        run.write_config(config(seed=seed))
        run.begin_attempt()
        run.write_environment({"threads": 1, "compiled": False, "precision": "fp32"})
        run.append_metrics({"step": 1, "train/loss": 4.5})
        run.write_table("position", [{"position": 0, "loss": 4.25}])
        run.write_results(RESULTS)
        run.end_attempt("done", signature=stored_signature(run.config()))
    return run


def everything(run: RunDirectory) -> dict[str, Any]:
    """What each reader of the run gives: its content, or the sentence that it raises."""
    frame = load_runs(run.path.parent).fillna(0.0)
    state = read_states(run.path.parent)[0]
    read: dict[str, Any] = {
        "frame": frame["error"][0] if frame["state"][0] == "unreadable" else frame.drop(columns="error").to_json(),
        "state": state.error if state.state == "unreadable" else (state.state, state.val_ppl, state.error),
    }
    readers: Mapping[str, Any] = {
        "config": run.config, "environment": run.environment, "metrics": run.metrics, "results": run.results,
        "table": lambda: run.written("tables/position.csv"), "intact": run.require_intact,
    }  # fmt: skip
    for name, reader in readers.items():
        try:
            read[name] = reader()
        except ConfigError as error:
            read[name] = str(error)
    return read


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_never_read_as_something_else(tmp_path: Path, damage: str) -> None:
    whole_run = finished_run(tmp_path / "whole" / "run")
    if damage == "unreadable":
        (probe := tmp_path / "probe").touch(0)
        if os.access(probe, os.R_OK):
            pytest.skip("root reads any file")
    whole = everything(whole_run)
    files = ["config.yaml", "environment.json", "status.json", "metrics.jsonl", "results.json", "tables/position.csv"]
    for file in files:
        run = RunDirectory(shutil.copytree(whole_run.path, tmp_path / file / "run"))
        DAMAGES[damage](run.path / file)
        found = everything(run)
        changed = {name for name in whole if str(found[name]).replace(file, "whole") != str(whole[name])}
        told = {name for name in changed if Path(file).name in str(found[name])}
        # Without status.json a run has not ended; without a file of settings there are none. YAML may have a BOM.
        absent = {"removed": {"status.json", "environment.json", "config.yaml"}, "BOM": {"config.yaml"}}
        if file not in absent.get(damage, ()):
            assert changed, file
            assert changed == told, (file, changed - told, found)


@pytest.mark.parametrize("files", [["config.yaml"], ["status.json"], ["status.json", "results.json", "metrics.jsonl"]])
def test_files_of_another_run_are_not_taken_for_this_run_s(tmp_path: Path, files: list[str]) -> None:
    own, other = finished_run(tmp_path / "runs/a"), finished_run(tmp_path / "b", seed=2)
    for file in files:
        shutil.copy(other.path / file, own.path / file)
    (error,) = load_runs(own.path.parent)["error"]
    marks = [stored_signature(config(seed=seed)) for seed in ((1, 2) if files == ["config.yaml"] else (2, 1))]
    assert f"status.json is of the run {marks[0]}, and config.yaml of the run {marks[1]}" in error
    with pytest.raises(ConfigError, match="restore the one that is not this run's"):
        load_run(own.path)
    named = own.path.rename(own.path.with_name(f"tiny-s1-{stored_signature(config())}"))
    assert read_states(named.parent)[0].state == ("unreadable" if "status.json" in files else "done")


def test_a_kill_between_a_file_and_its_hash_leaves_nothing_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, writes = finished_run(tmp_path / "run"), 0
    texts = {"tables/rank.csv": "layer\r\n0\r\n", "tables/position.csv": "loss\r\n5\r\n", "results.json": '{"a": 1}'}
    write = run_directory.write_text

    for kill_at in range(1, 4):

        def killed(path: Path, text: str, kill_at: int = kill_at) -> None:
            nonlocal writes
            writes += 1
            if writes == kill_at:
                raise KeyboardInterrupt
            write(path, text)

        writes = 0
        with monkeypatch.context() as patch:
            patch.setattr(run_directory, "write_text", killed)
            with pytest.raises(KeyboardInterrupt):
                run.replace_files(texts)
        run.require_intact()
    run.replace_files(texts)
    run.require_intact()
    (run.tables / "rank.csv").unlink()
    with pytest.raises(ConfigError, match=r"rank\.csv is missing"):
        run.require_intact()


def test_a_large_file_is_hashed_once_until_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intact, "LARGE", 0)
    file = tmp_path / "tokens.bin"
    file.write_bytes(b"tokens" * 1000)
    expected, hashed = file_sha256(file), []
    monkeypatch.setattr(intact, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    for _ in range(3):
        check_file(file, expected)
    assert len(hashed) == 1
    times = file.stat()
    file.write_bytes(bytes(6000))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ConfigError, match=r"tokens\.bin is damaged or was edited"):
        check_file(file, expected)


def test_an_edited_json_file_is_read_once_its_hash_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_json(file, {"state": "done", "loss": float("inf")})
    assert read_json(file) == {"state": "done", "loss": None}
    file.write_text(file.read_text().replace("done", "failed"))
    with pytest.raises(ConfigError, match=r"status\.json is damaged or was edited"):
        read_json(file)
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "sha256" not in line))
    assert read_json(file) == {"state": "failed", "loss": None}
