"""Which runs are packed, from configurations and frozen directories."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import newllm
from newllm.config import effective
from newllm.errors import ConfigError
from newllm.pack.compatibility import pack_key, reason_not_to_pack, require_compatible
from newllm.store.run_directory import RunDirectory
from newllm.sweep.packing import FILE, pack, require_packable
from newllm.sweep.slots import Grant
from tests.support.packs import SMALL


@cache
def composed(*words: str) -> dict[str, Any]:
    return effective(newllm.compose([*SMALL, *words]))


def config(*choices: str, **values: Any) -> dict[str, Any]:
    """The effective configuration of these choices, with `values` at dotted keys (a double underscore for a dot)."""
    effective_config = deepcopy(composed(*choices))
    for path, value in values.items():
        group, name = path.split("__")
        effective_config[group][name] = value
    return effective_config


@pytest.mark.parametrize(
    "values",
    [
        {"trainer__seed": 2}, {"pos_encoding__theta": 500}, {"pos_encoding__rotary_pct": 0.5}, {"optim__lr": 0.1},
        {"optim__schedule": "constant"}, {"model__init_std": 0.1}, {"optim__clip": None}, {"logger__folder": "there"},
    ],
)  # fmt: skip
def test_options_that_do_not_change_the_shape_may_differ(values: dict[str, Any]) -> None:
    assert pack_key(config()) == pack_key(config(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"attention__bias": True}, {"attention__kernel": "plain"}, {"pos_encoding__layers": [0]},
        {"pos_encoding__layout": "interleaved"}, {"model__norm_eps": 0.1}, {"model__mlp_size": 96},
        {"trainer__batch_size": 4}, {"data__seq_len": 64}, {"trainer__epochs": 3}, {"trainer__precision": "bf16"},
        {"trainer__patience": 1}, {"runtime__threads": 2}, {"data__samples": 10},
    ],
)  # fmt: skip
def test_options_that_change_shapes_data_or_kernels_may_not_differ(values: dict[str, Any]) -> None:
    assert pack_key(config()) != pack_key(config(**values))


def test_other_choices_may_not_differ() -> None:
    assert pack_key(config()) != pack_key(config("pos_encoding=alibi"))
    assert pack_key(config()) == pack_key(config("eval=[loss]"))


def test_lists_of_slopes_may_differ_and_lists_of_layers_may_not() -> None:
    alibi = config("pos_encoding=alibi")
    assert pack_key(alibi) == pack_key(config("pos_encoding=alibi", pos_encoding__slope=[0.5, 0.25]))
    assert pack_key(alibi) != pack_key(config("pos_encoding=alibi", pos_encoding__slope="geometric"))
    assert pack_key(alibi) != pack_key(config("pos_encoding=alibi", pos_encoding__layers=[1]))


def test_an_error_names_the_options_that_differ_and_those_that_may() -> None:
    runs = [config("attention=mla"), config("attention=mla", attention__kv_dim=128, trainer__seed=2)]
    same = config("attention=mla", trainer__seed=3)
    message = (
        r"pack=2: the runs differ in attention.kv_dim \(64, 128\); only seeds, optim, eval, model.init_std and "
        "real-valued options of pos_encoding may differ"
    )
    with pytest.raises(ConfigError, match=message):
        require_packable(runs, 2)
    with pytest.raises(ConfigError, match=message):
        require_compatible(runs, 2)
    require_packable([*runs, same], 2)
    with pytest.raises(ConfigError, match=r"attention.kv_dim \(64, 128\)"):
        require_compatible([*runs, same], 3)
    require_packable(runs, None)
    assert "leave trainer.devices at 1" in str(
        reason_not_to_pack([config(trainer__devices=2), config(trainer__devices=2, trainer__seed=1)])
    )
    with pytest.raises(ConfigError, match="pack=2: precision=fp16 scales the loss of each run"):
        require_packable([config(trainer__precision="fp16"), config(trainer__precision="fp16", trainer__seed=1)], 2)


class FakeMeasure:
    """Returns given speeds of packs, or refuses to pack; counts its calls."""

    def __init__(self, *speeds: float, refusal: str | None = None) -> None:
        self.speeds, self.refusal, self.calls = speeds, refusal, 0

    def __call__(self, runs: Sequence[Path], sizes: Sequence[int], grant: Grant) -> list[float]:
        self.calls += 1
        if self.refusal:
            raise ConfigError(self.refusal)
        return list(self.speeds[: len(sizes)])


def freeze(sweep: Path, *configs: dict[str, Any]) -> list[Path]:
    runs = [sweep / str(number) for number in range(len(configs))]
    for run, one in zip(runs, configs, strict=True):
        RunDirectory(run).freeze(one)
    return runs


def seeds(number: int) -> list[dict[str, Any]]:
    return [config(trainer__seed=seed) for seed in range(number)]


def test_runs_are_grouped_by_shape_in_packs_of_about_equal_size(tmp_path: Path) -> None:
    others = [config(trainer__batch_size=4), config(attention__bias=True), config(attention__bias=True, optim__lr=1.0)]
    runs = freeze(tmp_path, *seeds(5), *others)
    packing = pack(tmp_path, runs, 3, Grant(1), 1, {}, FakeMeasure())
    assert [[int(run.name) for run in packed] for packed in packing.packs] == [[0, 1], [2, 3, 4], [5], [6, 7]]
    assert (packing.size, packing.notes) == (3, ["1 run trains alone, since no other shares its trainer.batch_size."])
    assert [len(packed) for packed in pack(tmp_path, runs, None, Grant(1), 1, {}, FakeMeasure()).packs] == [1] * 8
    resumed = pack(
        tmp_path, runs[:3], 3, Grant(1), 1, {"0": 1, "1": 2, "2": 2}, FakeMeasure()
    )  # with different threads
    assert [len(packed) for packed in resumed.packs] == [1, 2]


def test_models_that_cannot_be_packed_are_refused_before_anything_starts(tmp_path: Path) -> None:
    runs = freeze(tmp_path, *seeds(2))
    with pytest.raises(ConfigError, match="pack=2: the class Own"):
        pack(tmp_path, runs, 2, Grant(1), 1, {}, FakeMeasure(refusal="the class Own"))


def test_auto_chooses_the_fastest_size_and_stores_the_measurement(tmp_path: Path) -> None:
    runs = freeze(tmp_path, *seeds(8))
    measure = FakeMeasure(10.0, 14.0, 18.0, 17.0)
    for _ in range(2):
        packing = pack(tmp_path, runs, "auto", Grant(1), 1, {}, measure)
        assert [len(packed) for packed in packing.packs] == [4, 4]
        assert "packs of 4 make 1.80 x the steps per second" in packing.notes[0]
    assert measure.calls == 1
    assert (tmp_path / FILE).exists()
    two_slots = pack(tmp_path, runs[:4], "auto", Grant(1), 2, {}, FakeMeasure(10.0, 14.0, 18.0))
    assert [len(packed) for packed in two_slots.packs] == [2, 2]  # no slot stays empty
    for measure, message in (
        (FakeMeasure(10.0, 10.2, 9.0, 9.0), "does not pay"),
        (FakeMeasure(refusal="no."), "no.; each run trains alone"),
    ):
        (tmp_path / FILE).unlink()
        packing = pack(tmp_path, runs, "auto", Grant(1), 1, {}, measure)
        assert packing.size == 1
        assert message in packing.notes[0]
