"""Many configurations composed together are those that are composed one by one."""

from itertools import product
from pathlib import Path

import pytest

from newllm.config import compose, effective, signature, slug
from newllm.config.compose import catalog_for, compose_many
from newllm.config.grid import combinations
from newllm.config.overrides import parse
from newllm.errors import ConfigError


def check_jobs(jobs: list[list[str]], config_dir: Path | None = None) -> None:
    for lines, run in zip(jobs, compose_many(jobs, config_dir=config_dir), strict=True):
        used = [line for line in lines if line.lstrip("+").partition("=")[0] not in run.unused]
        alone = compose(used, config_dir=config_dir)
        assert run.config == effective(alone), lines
        assert signature(run.config) == signature(alone)
        assert slug(run.config) == slug(alone)


def test_choices_axes_and_options_in_all_combinations() -> None:
    line = (
        "pos_encoding=rope,alibi,nope attention=mha,mla theta=1e4,5e5 slope=0.0625,[0.5,0.25] kv_dim=16,32 facts=none"
    )
    jobs = combinations(parse([*line.split(), "optim.clip=null,0.5", "seed=1,2"], catalog_for(), sweep=True))
    assert len(jobs) == 3 * 2 * 2 * 2 * 2 * 2 * 2
    check_jobs(jobs[::7])


def test_values_of_other_types_and_plus_signs() -> None:
    both = product(("null", "5e4"), (1, 2))
    check_jobs([[f"tokens={tokens}", f"+trainer.patience={patience}"] for tokens, patience in both])


def test_an_option_and_the_axis_behind_it() -> None:
    check_jobs([["theta=1e4", "pos_encoding.theta=3e4"], ["theta=2e4", "pos_encoding.theta=4e4"]])


def test_references_to_references_are_composed_whole(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text(
        "_target_: newllm.training.optimizer.AdamW\nlr: ${lr}\nbetas: [0.9, 0.99]\nweight_decay: ${.lr}\n"
    )
    check_jobs([["optim=mine", f"lr={lr}", f"seed={seed}"] for lr in (1e-3, 2e-3) for seed in (1, 2)], tmp_path)


def test_unused_axes_are_named_and_left_out_of_the_overrides() -> None:
    rope, nope = compose_many([["pos_encoding=rope", "theta=5.0"], ["pos_encoding=nope", "theta=5.0"]])
    assert rope.unused == ()
    assert nope.unused == ("theta",)
    assert nope.config["overrides"] == ["pos_encoding=nope"]


def test_a_wrong_name_anywhere_is_refused() -> None:
    with pytest.raises(ConfigError, match="thta is unknown"):
        compose_many([["theta=1e4"], ["thta=1e5"]])
