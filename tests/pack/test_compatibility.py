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
from newllm.pack.compatibility import key, require_compatible, unpackable
from newllm.store.run_directory import RunDirectory
from newllm.sweep.packing import FILE, pack, require_packable
from newllm.sweep.slots import Grant
from tests.support.packs import SMALL


@cache
def composed(*words: str) -> dict[str, Any]:
    return effective(newllm.compose([*SMALL, *words]))


def of(*choices: str, **values: Any) -> dict[str, Any]:
    """The effective configuration of these choices, with `values` at dotted keys (a double underscore for a dot)."""
    config = deepcopy(composed(*choices))
    for path, value in values.items():
        group, name = path.split("__")
        config[group][name] = value
    return config


@pytest.mark.parametrize(
    "values",
    [
        {"trainer__seed": 2}, {"pos_encoding__theta": 500}, {"pos_encoding__rotary_pct": 0.5}, {"optim__lr": 0.1},
        {"optim__schedule": "constant"}, {"model__init_std": 0.1}, {"optim__clip": None}, {"logger__folder": "there"},
    ],
)  # fmt: skip
def test_what_leaves_the_shape_alone_may_differ(values: dict[str, Any]) -> None:
    assert key(of()) == key(of(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"attention__bias": True}, {"attention__kernel": "plain"}, {"pos_encoding__layers": [0]},
        {"pos_encoding__layout": "interleaved"}, {"model__norm_eps": 0.1}, {"model__mlp_size": 96},
        {"trainer__batch_size": 4}, {"data__seq_len": 64}, {"trainer__epochs": 3}, {"trainer__precision": "bf16"},
        {"trainer__patience": 1}, {"runtime__threads": 2}, {"data__samples": 10},
    ],
)  # fmt: skip
def test_what_changes_shapes_data_or_kernels_may_not(values: dict[str, Any]) -> None:
    assert key(of()) != key(of(**values))


def test_another_choice_is_another_shape() -> None:
    assert key(of()) != key(of("pos_encoding=alibi"))
    assert key(of()) != key(of("eval=[loss]"))


def test_a_list_of_slopes_is_a_real_value_and_a_list_of_layers_is_none() -> None:
    alibi = of("pos_encoding=alibi")
    assert key(alibi) == key(of("pos_encoding=alibi", pos_encoding__slope=[0.5, 0.25]))
    assert key(alibi) != key(of("pos_encoding=alibi", pos_encoding__slope="geometric"))
    assert key(alibi) != key(of("pos_encoding=alibi", pos_encoding__layers=[1]))


def test_a_refusal_names_what_differs_and_what_may() -> None:
    runs = [of("attention=mla"), of("attention=mla", attention__kv_dim=128, trainer__seed=2)]
    same = of("attention=mla", trainer__seed=3)
    said = (
        r"pack=2: the runs differ in attention.kv_dim \(64, 128\); only seeds, optim, model.init_std and real-valued "
        "options of pos_encoding may differ"
    )
    with pytest.raises(ConfigError, match=said):
        require_packable(runs, 2)
    with pytest.raises(ConfigError, match=said):
        require_compatible(runs, 2)
    require_packable([*runs, same], 2)
    with pytest.raises(ConfigError, match=r"attention.kv_dim \(64, 128\)"):
        require_compatible([*runs, same], 3)
    require_packable(runs, None)
    assert "leave trainer.devices at 1" in str(
        unpackable([of(trainer__devices=2), of(trainer__devices=2, trainer__seed=1)])
    )


class Meter:
    """Pretends to time packs."""

    def __init__(self, *speeds: float, refused: str | None = None) -> None:
        self.speeds, self.refused, self.asked = speeds, refused, 0

    def __call__(self, runs: Sequence[Path], sizes: Sequence[int], grant: Grant) -> list[float]:
        self.asked += 1
        if self.refused:
            raise ConfigError(self.refused)
        return list(self.speeds[: len(sizes)])


def frozen(sweep: Path, *configs: dict[str, Any]) -> list[Path]:
    runs = [sweep / str(number) for number in range(len(configs))]
    for run, config in zip(runs, configs, strict=True):
        RunDirectory(run).freeze(config)
    return runs


def seeds(number: int) -> list[dict[str, Any]]:
    return [of(trainer__seed=seed) for seed in range(number)]


def test_runs_are_grouped_by_shape_in_packs_of_about_equal_size(tmp_path: Path) -> None:
    others = [of(trainer__batch_size=4), of(attention__bias=True), of(attention__bias=True, optim__lr=1.0)]
    runs = frozen(tmp_path, *seeds(5), *others)
    found = pack(tmp_path, runs, 3, Grant(1), 1, {}, Meter())
    assert [[int(run.name) for run in packed] for packed in found.packs] == [[0, 1], [2, 3, 4], [5], [6, 7]]
    assert (found.size, found.notes) == (3, ["1 run trains alone, since no other shares its trainer.batch_size."])
    assert [len(packed) for packed in pack(tmp_path, runs, None, Grant(1), 1, {}, Meter()).packs] == [1] * 8
    begun = pack(tmp_path, runs[:3], 3, Grant(1), 1, {"0": 1, "1": 2, "2": 2}, Meter())  # with other threads
    assert [len(packed) for packed in begun.packs] == [1, 2]


def test_models_that_cannot_be_packed_are_refused_before_anything_starts(tmp_path: Path) -> None:
    runs = frozen(tmp_path, *seeds(2))
    with pytest.raises(ConfigError, match="pack=2: the class Own"):
        pack(tmp_path, runs, 2, Grant(1), 1, {}, Meter(refused="the class Own"))


def test_auto_takes_what_is_measured_to_pay_and_remembers_it(tmp_path: Path) -> None:
    runs = frozen(tmp_path, *seeds(8))
    meter = Meter(10.0, 14.0, 18.0, 17.0)
    for _ in range(2):
        found = pack(tmp_path, runs, "auto", Grant(1), 1, {}, meter)
        assert [len(packed) for packed in found.packs] == [4, 4]
        assert "packs of 4 make 1.80 x the steps per second" in found.notes[0]
    assert meter.asked == 1
    assert (tmp_path / FILE).exists()
    two_slots = pack(tmp_path, runs[:4], "auto", Grant(1), 2, {}, Meter(10.0, 14.0, 18.0))
    assert [len(packed) for packed in two_slots.packs] == [2, 2]  # no slot stays empty
    for meter, said in (
        (Meter(10.0, 10.2, 9.0, 9.0), "does not pay"),
        (Meter(refused="no."), "no.; each run trains alone"),
    ):
        (tmp_path / FILE).unlink()
        found = pack(tmp_path, runs, "auto", Grant(1), 1, {}, meter)
        assert found.size == 1
        assert said in found.notes[0]
