"""Which combinations a sweep asks for."""

import pytest

from newllm.config.compose import catalog_for
from newllm.config.grid import combinations
from newllm.config.overrides import parse
from newllm.errors import ConfigError


def runs(*overrides: str, **sweep) -> list[str]:
    return [" ".join(lines) for lines in combinations(parse(overrides, catalog_for(), sweep=True), **sweep)]


def test_every_combination_once_the_last_key_fastest() -> None:
    assert runs("facts=none", "seed=1,2", "lr=1e-3,2e-3") == [
        "facts=none seed=1 lr=0.001", "facts=none seed=1 lr=0.002",
        "facts=none seed=2 lr=0.001", "facts=none seed=2 lr=0.002",
    ]  # fmt: skip


def test_ranges_globs_and_lists_as_values() -> None:
    assert runs("seed=range(1,4)") == ["seed=1", "seed=2", "seed=3"]
    assert runs("pos_encoding=glob(kerple*)") == ["pos_encoding=kerple_log", "pos_encoding=kerple_power"]
    assert runs("slope=0.5,[0.5,0.25]") == ["slope=0.5", "slope=[0.5,0.25]"]


def test_seeds_is_short_for_so_many_seeds() -> None:
    assert runs(seeds=3) == ["seed=1", "seed=2", "seed=3"]
    with pytest.raises(ConfigError, match="give one of the two"):
        runs("seed=1,2", seeds=3)


def test_grids_are_run_one_after_another_and_the_command_line_wins() -> None:
    grids = [{"pos_encoding": ["rope", "alibi"], "seed": "1,2"}, {"attention": "mla", "kv_dim": [16, 32]}]
    assert runs(grids=grids) == [
        "pos_encoding=rope seed=1", "pos_encoding=rope seed=2",
        "pos_encoding=alibi seed=1", "pos_encoding=alibi seed=2",
        "attention=mla kv_dim=16", "attention=mla kv_dim=32",
    ]  # fmt: skip
    assert runs("seed=7", grids=grids[:1]) == ["seed=7 pos_encoding=rope", "seed=7 pos_encoding=alibi"]


def test_zipped_keys_go_in_step() -> None:
    assert runs("seed=1,2", zips=[{"lr": [1e-3, 5e-4], "batch_size": [4, 8]}]) == [
        "seed=1 lr=0.001 batch_size=4", "seed=1 lr=0.0005 batch_size=8",
        "seed=2 lr=0.001 batch_size=4", "seed=2 lr=0.0005 batch_size=8",
    ]  # fmt: skip
    assert runs(grids=[{"zip": {"lr": [1, 2], "epochs": [3, 4]}}]) == ["lr=1 epochs=3", "lr=2 epochs=4"]


@pytest.mark.parametrize(
    ("overrides", "sweep", "message"),
    [
        ([], {"zips": [{"lr": [1e-3], "batch_size": [4, 8]}]}, "lr has 1, batch_size has 2"),
        (["lr=1"], {"zips": [{"lr": [1e-3], "batch_size": [4]}]}, "leave it out of the command line"),
        ([], {"zips": [{"lr": 3}]}, "expected lists of values"),
        ([], {"grids": [{"seed": []}]}, "seed has an empty list"),
        ([], {"grids": [{"seed": "1,(2"}]}, "can't be read"),
        (["theta=interval(1,5)"], {}, "an interval has no discrete values"),
        (["seed=range(3,3)"], {}, "has no values"),
        (["pos_encoding=glob(zzz*)"], {}, "matches no pos_encoding"),
        (["theta=glob(*)"], {}, "theta is not a group"),
        (["pos_encoding=rope,ropee"], {}, "did you mean pos_encoding=rope?"),
        (["hydra.sweep.dir=a,b"], {}, "one value for the whole sweep"),
    ],
)
def test_what_cannot_be_combined_is_said_in_a_sentence(overrides: list[str], sweep: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        runs(*overrides, **sweep)
    assert message in str(error.value)
