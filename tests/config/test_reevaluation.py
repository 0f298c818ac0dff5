"""The configuration of an evaluation: the stored one with what is typed."""

from pathlib import Path
from typing import Any

import pytest

import newllm
from newllm.config import effective
from newllm.config.reevaluation import evaluation
from newllm.errors import ConfigError


def stored(*overrides: str, config_dir: Path | None = None) -> dict[str, Any]:
    return effective(newllm.compose(overrides, config_dir=config_dir))


def test_without_overrides_it_is_the_stored_one() -> None:
    run = stored("model=tiny", "theta=100")
    asked = evaluation(run)
    assert asked.config == run
    assert asked.repeats
    assert asked.said == ()


@pytest.mark.parametrize(
    ("trained", "typed", "said"),
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
def test_what_is_said_to_differ(trained: list[str], typed: list[str], said: tuple[str, ...]) -> None:
    run = stored(*trained)
    asked = evaluation(run, typed)
    assert asked.said == said
    assert asked.config["data"]["vocab_size"] == run["data"]["vocab_size"]  # with the tokenizer of the run
    assert asked.config["data"]["seq_len"] == run["data"]["seq_len"]
    assert asked.config["model"] == run["model"]


def test_what_has_become_another_default_since_stays_as_trained() -> None:
    run = stored()
    run["pos_encoding"]["rotary_pct"], run["optim"]["eps"], run["eval"]["loss"]["reference"] = 0.25, 1e-3, 7.0
    config = evaluation(run, ["theta=100", "eval=[rank,loss]", "runtime.threads=1"]).config
    assert (config["pos_encoding"]["theta"], config["pos_encoding"]["rotary_pct"]) == (100, 0.25)
    assert config["optim"] == run["optim"]
    assert config["eval"]["loss"] == run["eval"]["loss"]
    assert list(config["eval"]) == ["rank", "loss"]


def test_evaluators_that_are_named_again_keep_their_options() -> None:
    run = stored("eval=[loss,rank]", "eval.loss.weighting=batch_mean", "eval.rank.positions=64")
    config = evaluation(run, ["eval=[loss,position]"]).config
    assert config["eval"]["loss"]["weighting"] == "batch_mean"
    assert list(config["eval"]) == ["loss", "position"]


def test_files_of_the_users_are_needed_only_for_what_is_typed(tmp_path: Path) -> None:
    (tmp_path / "pos_encoding").mkdir()
    (tmp_path / "pos_encoding" / "mine.yaml").write_text("_target_: newllm.position.Alibi\nslope: 0.5\nlayers: all\n")
    run = stored("pos_encoding=mine", config_dir=tmp_path)
    assert list(evaluation(run, ["eval=[rank]"]).config["eval"]) == ["rank"]
    with pytest.raises(ConfigError, match="pos_encoding=mine"):
        evaluation(run, ["pos_encoding.slope=0.25"])
    assert evaluation(run, ["pos_encoding.slope=0.25"], config_dir=tmp_path).said == ("slope=0.25",)


@pytest.mark.parametrize(
    ("typed", "key"),
    [("seed=1", "trainer.seed"), ("model.num_layers=3", "model"), ("batch_size=3", "trainer.batch_size")],
)
def test_what_the_run_was_trained_with_stays(typed: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is what the run was trained with"):
        evaluation(stored(), [typed])
