"""Stages before training: a user's own is found through groups.yaml, checked before anything is written, and run."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import newllm
from newllm.config.groups import groups
from newllm.errors import ConfigError
from newllm.pack.compatibility import reason_not_to_pack
from newllm.run.execute import run
from newllm.run.stage import build_stages
from newllm.store.run_directory import RunDirectory

GROUPS = {"fewer": {"stage": True, "pack": "alone"}, "flavour": {"part_of": "fewer"}}


def configuration(folder: Path, rows: int = 3, **changes: Any) -> DictConfig:
    cfg = newllm.compose([
        "samples=60", "seq_len=32", "data.vocab_size=512", "facts=none", "eval=[loss]", "model.hidden_size=16",
        "model.num_layers=1", "model.heads=2", "model.mlp_size=32", "epochs=1", "batch_size=1", "precision=fp32",
        "runtime.threads=1",
    ])  # fmt: skip
    added = {"groups": GROUPS, "fewer": {"_target_": "tests.support.stages.FewerRows", "rows": rows}}
    for key, value in {**added, "run_dir": str(folder), **changes}.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def test_a_stage_runs_and_training_reads_its_data(tmp_path: Path) -> None:
    assert run(configuration(tmp_path)) == 0
    results = RunDirectory(tmp_path).results()
    assert (results["fewer/rows"], results["fewer/seed"], results["train/steps"]) == (3, 42, 3)
    assert RunDirectory(tmp_path).status()["stage_seconds"] >= 0


def test_a_stage_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fewer\.rows="):
        run(configuration(tmp_path / "run", rows=1000))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"trainer__devices": 2}, r"trainer\.devices"),
        ({"runtime__compile": True}, r"runtime\.compile=true"),
        ({"flavour": {"_target_": "tests.support.stages.FewerRows"}}, "flavour=none"),
    ],
)
def test_settings_that_rule_out_a_stage(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build_stages(configuration(tmp_path, **changes))


def test_a_run_with_a_stage_is_not_packed(tmp_path: Path) -> None:
    configs = [OmegaConf.to_container(configuration(tmp_path / name), resolve=True) for name in "ab"]
    assert "trains alone" in str(reason_not_to_pack(configs))  # type: ignore[arg-type]
    assert [name for name, group in groups().items() if group.stage] == ["embeddings", "phase1"]
