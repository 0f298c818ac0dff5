import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from newllm.analysis.frame import load_runs
from newllm.config import signature
from newllm.errors import ConfigError
from newllm.store.run_directory import RunDirectory
from tests.support.run_folders import SCORED, config, folder


def test_a_row_per_run_with_choices_axes_and_metrics(tmp_path: Path):
    cfg = config("pos_encoding=alibi", "attention=mla", "kv_dim=128", "slope=[0.5,0.25,0.125,0.0625]", seed=3)
    path = folder(tmp_path / "sweep", cfg, {"val/ppl": 150.25, "val/best_epoch": 2, "val/loss": None})
    row = load_runs(tmp_path).iloc[0]
    assert row[["run", "path", "state", "sweep"]].tolist() == [path.name, str(path), "done", str(path.parent)]
    assert row["signature"] == signature(cfg)
    assert row["config"] == cfg
    assert (row["seed"], row["kv_dim"], row["slope"]) == (3, 128, (0.5, 0.25, 0.125, 0.0625))
    assert (row["pos_encoding"], row["attention"], row["model"]) == ("alibi", "mla", "nano")
    assert row["eval"].startswith("loss+position+")
    assert "pos_encoding=alibi" in row["overrides"]
    assert (row["val/ppl"], row["val/best_epoch"]) == (150.25, 2.0)
    assert np.isnan(row["val/loss"])
    assert row["error"] is None


def test_axes_and_metrics_that_a_run_does_not_have_are_missing(tmp_path: Path):
    folder(tmp_path, config("pos_encoding=rope", "theta=5e5"), {"val/ppl": 100.0})
    folder(tmp_path, config("pos_encoding=alibi"), {"val/ppl": 110.0, "extra/metric": 1})
    frame = load_runs(tmp_path).set_index("pos_encoding")
    assert frame.loc["rope", "theta"] == 5e5
    assert np.isnan(frame.loc["alibi", "theta"])
    assert np.isnan(frame.loc["rope", "slope"])
    assert np.isnan(frame.loc["rope", "extra/metric"])
    assert frame["val/ppl"].dtype == "float64"


def test_runs_are_found_at_any_depth_but_not_inside_runs_or_hidden_folders(tmp_path: Path):
    one = folder(tmp_path / "study" / "a", config(seed=1), {})
    two = folder(tmp_path / "b", config(seed=2), {})
    shutil.copytree(one, two / "old" / one.name)
    shutil.copytree(one, tmp_path / ".sweep" / one.name)
    assert load_runs(tmp_path)["path"].tolist() == [str(two), str(one)]
    assert load_runs(one)["path"].tolist() == [str(one)]
    assert load_runs([tmp_path / "b", one, tmp_path])["path"].tolist() == [str(two), str(one)]
    (tmp_path / "empty").mkdir()
    empty = load_runs(tmp_path / "empty")
    assert len(empty) == 0
    assert {*empty} == {
        "run", "path", "sweep", "evaluated_from", "state", "signature", "seed", "not_finite", "overrides", "config",
        "scored", "error"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="nowhere"):
        load_runs(tmp_path / "nowhere")


def test_evaluations_under_other_settings_are_rows_after_their_run(tmp_path: Path):
    runs = [folder(tmp_path / "sweep", config(seed=seed), {"val/ppl": 100.0}) for seed in (1, 2)]
    for path, seed in zip(runs, (1, 2), strict=True):
        cfg = config("pos_encoding.theta=100", seed=seed)
        cfg["choices"]["evaluated"] = "theta=100"
        folder(path / "evaluations", cfg, {"val/ppl": 120.0})
        folder(path / "evaluations" / "deeper", cfg, {})
    (runs[0] / "evaluations" / ".half.building").mkdir()
    assert load_runs(tmp_path)["val/ppl"].tolist() == [100.0, 100.0]  # as trained, unless they are asked for
    assert 120.0 in load_runs(runs[0] / "evaluations")["val/ppl"].tolist()  # or named by the path
    frame = load_runs(tmp_path, evaluations=True)
    assert frame["evaluated_from"].fillna("").tolist() == ["", runs[0].name, "", runs[1].name]
    assert frame["evaluated"].fillna("").tolist() == ["", "theta=100", "", "theta=100"]
    assert frame["sweep"].unique().tolist() == [str(tmp_path / "sweep")]
    assert frame["val/ppl"].tolist() == [100.0, 120.0, 100.0, 120.0]
    trained_so = folder(tmp_path, config("pos_encoding.theta=100"), {})
    assert load_runs(trained_so)["signature"].tolist() == [signature(config("pos_encoding.theta=100"))]
    assert frame["signature"].nunique() == 4
    assert not frame["signature"].isin(load_runs(trained_so)["signature"]).any()
    lost = Path(frame["path"].iloc[1])
    (lost / "results.json").unlink()
    (lost / "evaluations.jsonl").write_text(json.dumps({"eval": {}, "overrides": ["theta=100", "eval=[loss,qk]"]}))
    ((state, error),) = (
        load_runs(tmp_path, evaluations=True).set_index("path").loc[[str(lost)], ["state", "error"]].values
    )
    command = f"newllm evaluate {runs[0]} theta=100 'eval=[loss,qk]'"
    assert (state, error) == ("interrupted", f"Its results.json is gone; {command} makes it again.")


def test_later_evaluators_are_in_the_configuration(tmp_path: Path):
    path = folder(tmp_path, config("eval=[loss]"), {"val/ppl": 100.0, "rank/share": 0.5})
    rank = config("eval=[rank]")["eval"]["rank"]
    (path / "evaluations.jsonl").write_text(json.dumps({"eval": {"rank": rank}}) + "\n")
    row = load_runs(tmp_path).iloc[0]
    assert row["eval"] == "loss+rank"
    assert row["config"]["eval"] == {"loss": config("eval=[loss]")["eval"]["loss"], "rank": rank}
    assert row["signature"] == signature(config("eval=[loss]"))
    (path / "evaluations.jsonl").write_text("half a li")
    assert "evaluations.jsonl is not valid JSON" in load_runs(tmp_path)["error"].iloc[0]


def test_unfinished_runs_are_rows_without_metrics(tmp_path: Path):
    states = ["queued", "failed", "interrupted", "running"]
    paths = [folder(tmp_path, config(seed=n), {"val/ppl": 9.0}, state) for n, state in enumerate(states)]
    folder(tmp_path, config(seed=9), {"val/ppl": 100.0})
    RunDirectory(paths[1].as_posix()).update_status(error="the loss is not finite")
    with RunDirectory(paths[3]).locked():
        frame = load_runs(tmp_path).set_index("seed")
        assert frame.loc[:3, "state"].tolist() == states
    assert load_runs(tmp_path).set_index("seed").loc[3, "state"] == "interrupted"  # nobody holds it any more
    assert frame.loc[1, "error"] == "the loss is not finite"
    assert frame.loc[:3, "val/ppl"].isna().all()
    assert frame.loc[9, "val/ppl"] == 100.0


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("results.json", '{"val/ppl": 1', "results.json is not valid JSON"),
        ("results.json", "[1, 2]", "results.json does not hold a mapping"),
        ("results.json", '{"val/ppl": "high"}', 'val/ppl="high"'),
        ("results.json", '{"val/ppl": 1%s}' % ("0" * 400), "results.json has an integer in val/ppl that is larger"),
        ("status.json", "", "status.json is not valid JSON"),
        ("config.yaml", "a: [1, 2", "config.yaml is not valid YAML"),
        ("config.yaml", "just text", "config.yaml does not hold a mapping"),
        ("config.yaml", "model: {}\ndata: {}", "config.yaml has no choices, pos_encoding"),
        ("config.yaml", b"\xff\xfe\x00", "config.yaml is not text"),
    ],
)
def test_a_corrupt_run_is_listed_with_the_reason(tmp_path: Path, file, content, reason):
    bad, good = (folder(tmp_path, config(seed=n), {"val/ppl": 100.0 + n}) for n in (1, 2))
    (bad / file).unlink()
    if content is not None:
        (bad / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    frame = load_runs(tmp_path).set_index("run")
    assert frame.loc[bad.name, "state"] == "unreadable"
    assert reason in frame.loc[bad.name, "error"]
    assert np.isnan(frame.loc[bad.name, "val/ppl"])
    assert frame.loc[good.name, ["state", "val/ppl", "seed"]].tolist() == ["done", 102.0, 2]


def test_a_run_of_another_version_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder(tmp_path, config(), {"val/ppl": 100.0})
    assert load_runs(tmp_path)["state"].tolist() == ["done"]
    monkeypatch.setattr("newllm.config.identity.SCHEMA", 999)
    row = load_runs(tmp_path).iloc[0]
    assert row["state"] == "unreadable"
    assert "another version of newllm" in row["error"]


def test_the_signature_holds_where_the_text_is_out_of_reach(tmp_path: Path):
    text = tmp_path / "texts" / "a.txt"
    text.parent.mkdir()
    text.write_text("some text")
    cfg = config("data=text", f"data.path={text.parent}")
    folder(tmp_path / "runs", cfg, {})
    shutil.rmtree(text.parent)
    assert load_runs(tmp_path / "runs")["signature"].iloc[0] == signature(cfg)
    assert load_runs(tmp_path / "runs")["state"].iloc[0] == "done"
    named = tmp_path / "mine-20260101"  # a name of the user's, which looks like a signature
    os.rename(folder(tmp_path / "x", config(), {}), named)
    assert load_runs(named)["signature"].iloc[0] == signature(config())


def test_any_layout_of_yaml_gives_the_same_configuration(tmp_path: Path):
    cfg = config("pos_encoding.layers=[0,2]", "eval=[loss]")
    path = folder(tmp_path, cfg, {})
    layouts = [
        yaml.safe_dump(cfg, default_flow_style=True),
        "# a comment\n---\n" + yaml.safe_dump(cfg, indent=4, width=20),
        yaml.safe_dump(cfg, explicit_end=True),
        yaml.safe_dump({**cfg, "other": cfg["data"]}),  # has an anchor and a reference to it
    ]
    for text in layouts:
        (path / "config.yaml").write_text(text)
        stored = load_runs(path)["config"].iloc[0]
        assert {key: value for key, value in stored.items() if key != "other"} == cfg


def test_runs_share_the_parts_of_their_configurations(tmp_path: Path):
    for seed in (1, 2):
        folder(tmp_path, config(seed=seed), {})
    one, two = load_runs(tmp_path)["config"]
    assert one["model"] is two["model"]  # what makes ten thousand runs fit in memory and in seconds
    assert one["trainer"] != two["trainer"]


def test_torch_is_not_imported(tmp_path: Path):
    folder(tmp_path, config(), {**SCORED, "val/ppl": 100.0})
    code = (
        "import sys; from newllm import load_runs; from newllm.analysis.run_groups import groups; "
        f"assert len(groups(load_runs({str(tmp_path)!r}))) == 1; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'scipy', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
