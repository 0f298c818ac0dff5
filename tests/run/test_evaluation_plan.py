"""The configuration of an evaluation: the stored one with the typed overrides."""

from pathlib import Path
from typing import Any

import pytest

import newllm
from newllm.config import effective
from newllm.errors import ConfigError
from newllm.run.evaluation_plan import EvaluationPlan, plan_from_config
from newllm.store.run_directory import RunDirectory


def stored_config(*overrides: str, config_dir: Path | None = None) -> dict[str, Any]:
    return effective(newllm.compose(overrides, config_dir=config_dir))


def plan_for(config: dict[str, Any], overrides: list[str] | None = None, **options: Any) -> EvaluationPlan:
    return plan_from_config(RunDirectory("run"), config, overrides or [], **options)


def test_without_overrides_the_stored_configuration_is_used() -> None:
    run = stored_config("model=tiny", "theta=100")
    plan = plan_for(run)
    assert plan.config == run
    assert plan.repeats
    assert plan.settings == ()


@pytest.mark.parametrize(
    ("trained", "typed", "settings"),
    [
        ([], ["theta=100"], ("theta=100",)),
        (["theta=100"], ["pos_encoding.theta=50"], ("theta=50",)),
        (["pos_encoding.theta=100"], ["theta=50"], ("theta=50",)),
        (["pos_encoding.scaling=yarn"], ["pos_encoding.scaling=null"], ("scaling=null",)),  # null is the default
        (["theta=100"], ["theta=1e2", "eval=[rank]"], ()),
        (["slope=0.125", "pos_encoding=alibi"], ["pos_encoding=rope", "theta=50"], ("pos_encoding=rope", "theta=50")),
        (["precision=fp32"], ["precision=bf16"], ("precision=bf16",)),
        (["seq_len=32", "data.vocab_size=512"], ["data=text", "data.path=."], ("data=text", "path=")),
        (["experiment=context_token_scaling_small"], ["data=text", "data.path=."], ("data=text", "path=")),
    ],
)
def test_changed_settings(trained: list[str], typed: list[str], settings: tuple[str, ...]) -> None:
    run = stored_config(*trained)
    plan = plan_for(run, typed)
    assert plan.settings == settings
    assert plan.config["data"]["vocab_size"] == run["data"]["vocab_size"]  # with the tokenizer of the run
    assert plan.config["data"]["seq_len"] == run["data"]["seq_len"]
    assert plan.config["model"] == run["model"]


def test_stored_values_are_kept_when_defaults_have_changed() -> None:
    run = stored_config()
    run["pos_encoding"]["rotary_pct"], run["optim"]["eps"], run["eval"]["loss"]["batch_size"] = 0.25, 1e-3, 7
    config = plan_for(run, ["theta=100", "eval=[rank,loss]", "runtime.threads=1"]).config
    assert (config["pos_encoding"]["theta"], config["pos_encoding"]["rotary_pct"]) == (100, 0.25)
    assert config["optim"] == run["optim"]
    assert config["eval"]["loss"] == run["eval"]["loss"]
    assert list(config["eval"]) == ["rank", "loss"]


def test_named_evaluators_keep_their_options() -> None:
    run = stored_config("eval=[loss,rank]", "eval.loss.weighting=batch_mean", "eval.rank.positions=64")
    config = plan_for(run, ["eval=[loss,position]"]).config
    assert config["eval"]["loss"]["weighting"] == "batch_mean"
    assert list(config["eval"]) == ["loss", "position"]


def test_yaml_files_of_the_user_are_read_only_for_typed_groups(tmp_path: Path) -> None:
    (tmp_path / "pos_encoding").mkdir()
    (tmp_path / "pos_encoding" / "mine.yaml").write_text("_target_: newllm.position.Alibi\nslope: 0.5\nlayers: all\n")
    run = stored_config("pos_encoding=mine", config_dir=tmp_path)
    assert list(plan_for(run, ["eval=[rank]"]).config["eval"]) == ["rank"]
    with pytest.raises(ConfigError, match="pos_encoding=mine"):
        plan_for(run, ["pos_encoding.slope=0.25"])
    assert plan_for(run, ["pos_encoding.slope=0.25"], config_dir=tmp_path).settings == ("slope=0.25",)


@pytest.mark.parametrize(
    ("typed", "key"),
    [("seed=1", "trainer.seed"), ("model.num_layers=3", "model"), ("batch_size=3", "trainer.batch_size")],
)
def test_settings_fixed_by_training_are_refused(typed: str, key: str) -> None:
    option = typed.partition("=")[0]
    with pytest.raises(ConfigError, match=f"^{typed}: {key} is fixed by training; leave {option} out"):
        plan_for(stored_config(), [typed])
