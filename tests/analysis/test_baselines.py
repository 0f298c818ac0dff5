"""Which groups are compared with which."""

from collections.abc import Sequence

import pandas as pd
import pytest

from newllm.analysis.baselines import choose_baseline, unequal_groups
from newllm.analysis.run_groups import groups
from newllm.errors import ConfigError
from tests.support.run_folders import table


def sweep(*configurations: Sequence[str]) -> pd.DataFrame:
    return table((overrides, seed, {"val/ppl": 100.0}) for overrides in configurations for seed in (1, 2, 3))


def crossing(encodings: str = "rope alibi nope", attentions: str = "mha mla") -> list[list[str]]:
    return [[f"pos_encoding={a}", f"attention={b}"] for a in encodings.split() for b in attentions.split()]


def evaluated(frame: pd.DataFrame, setting: str = "scaling=yarn", **options: object) -> pd.DataFrame:
    """The runs, each followed by an evaluation under another setting."""
    later = frame.copy()
    later["config"] = [
        {
            **config,
            "choices": {**config["choices"], "evaluated": setting},
            "pos_encoding": {**config["pos_encoding"], **(options or {"scaling": "yarn"})},
        }
        for config in frame["config"]
    ]
    later["path"] = [f"{path}/evaluations/later" for path in frame["path"]]
    return pd.concat([frame, later], ignore_index=True)


def pairs(frame: pd.DataFrame, wanted: str | None, **how: list[str]) -> dict[str, str]:
    return {a.label: b.label for a, b in choose_baseline(groups(frame, **how), wanted).pairs.items()}


def test_a_baseline_that_one_group_fits_is_that_of_all():
    frame = sweep(["theta=1e4"], ["theta=5e5"], ["pos_encoding=alibi"], ["pos_encoding=alibi", "attention=mla"])
    texts = {
        "rope · mha · theta 500000": "rope · mha · theta 500000",
        "Rope · theta 10000": "rope · mha · theta 10000",
        "mla": "alibi · mla",
        "theta=1e4": "rope · mha · theta 10000",
        "[pos_encoding=alibi,attention=mha]": "alibi · mha",
        "attention.kv_dim=64": "alibi · mla",
    }
    for text, label in texts.items():
        found = pairs(frame, text)
        assert [*found.values()] == [label] * 3, text
        assert label not in found


def test_a_baseline_that_several_groups_fit_is_each_groups_own_counterpart():
    """As in a sweep over encodings, attentions and widths of the latent."""
    runs = [
        [f"pos_encoding={name}", *attention]
        for name in ("rope", "alibi", "nope")
        for attention in (["attention=mha"], ["attention=mla", "kv_dim=16"], ["attention=mla", "kv_dim=32"])
    ]
    by_encoding = pairs(sweep(*runs), "pos_encoding=rope")
    assert by_encoding == {
        f"{name} · {rest}": f"rope · {rest}"
        for name in ("alibi", "nope")
        for rest in ("mha", "mla · kv_dim 16", "mla · kv_dim 32")
    }
    assert pairs(sweep(*runs), "rope") == by_encoding
    by_attention = pairs(sweep(*runs), "attention=mha")
    assert by_attention["alibi · mla · kv_dim 32"] == "alibi · mha"
    assert len(by_attention) == 6
    by_width = pairs(sweep(*runs), "kv_dim=16")
    assert by_width["nope · mla · kv_dim 32"] == "nope · mla · kv_dim 16"
    by_keys = pairs(sweep(*runs), "pos_encoding=rope", by=["pos_encoding", "attention", "kv_dim"])
    assert by_keys["alibi · mla · kv_dim 32"] == "rope · mla · kv_dim 32"


def test_other_settings_must_be_equal():
    runs = [[*one, f"lr={lr}"] for one in crossing("rope alibi", "mha") for lr in (1e-3, 5e-4)]
    assert pairs(sweep(*runs), "pos_encoding=rope")["alibi · lr 0.0005"] == "rope · lr 0.0005"
    found = choose_baseline(groups(sweep(*runs, ["pos_encoding=nope", "lr=0.1"])), "pos_encoding=rope")
    assert "nope · lr 0.1" in found.notes[0]
    assert "equal in everything else" in found.words
    layers = [["pos_encoding=rope"], ["pos_encoding=rope", "attention=mla"], ["pos_encoding=rnope"],
              ["pos_encoding=rnope", "attention=mla"]]  # fmt: skip
    assert pairs(sweep(*layers), "pos_encoding=rope") == {"rnope · mha": "rope · mha", "rnope · mla": "rope · mla"}


@pytest.mark.parametrize("option", ["pos_encoding.scaling=yarn", "model.mlp_size=64", "pos_encoding.theta=100"])
def test_without_a_baseline_the_shipped_options_are_taken(option: str) -> None:
    ((group, baseline),) = choose_baseline(groups(sweep([option], [])), None).pairs.items()
    assert (group.positions.tolist(), baseline.positions.tolist()) == ([0, 1, 2], [3, 4, 5])


def test_of_several_counterparts_the_one_with_the_defaults_is_taken_and_said():
    thetas = [[*one, f"theta={theta}"] for one in crossing("rope") for theta in (1e4, 5e5)]
    found = choose_baseline(groups(sweep(*thetas, *crossing("alibi nope"))), "pos_encoding=rope")
    chosen = {a.label: b.label for a, b in found.pairs.items()}
    assert chosen["alibi · mla"] == "rope · mla · theta 10000"
    assert chosen["rope · mla · theta 500000"] == "rope · mla · theta 10000"
    assert len(chosen) == 6
    assert "theta=10000, the default" in found.notes[0]
    assert "'baseline=[pos_encoding=rope,theta=500000]' takes another" in found.notes[0]
    assert pairs(sweep(*thetas, *crossing("alibi")), "[pos_encoding=rope,theta=5e5]")["alibi · mla"].endswith("500000")
    others = [[*one, f"theta={theta}"] for one in crossing("rope") for theta in (2e4, 5e5)]
    with pytest.raises(ConfigError, match=r"add theta, as in 'baseline=\[pos_encoding=rope,theta=20000\]'"):
        choose_baseline(groups(sweep(*others, *crossing("alibi"))), "pos_encoding=rope")


def test_a_baseline_is_a_group_as_trained_and_evaluations_are_compared_with_their_own_runs():
    frame = evaluated(sweep(*crossing("rope", "mha mla")))
    plain = pairs(sweep(*crossing("rope", "mha mla")), "[pos_encoding=rope,attention=mha]")
    found = choose_baseline(groups(frame), "[pos_encoding=rope,attention=mha]")
    assert len(plain) == len(found.pairs) == 1
    assert {a.label: b.label for a, b in found.evaluations.items()} == {
        "mha · evaluated scaling=yarn": "mha",
        "mla · evaluated scaling=yarn": "mla",
    }
    said = choose_baseline(groups(frame), "[attention=mha,evaluated=scaling=yarn]")
    assert {group.label for group in said.pairs} == {"mha", "mla", "mla · evaluated scaling=yarn"}
    only = frame[frame["path"].str.contains("evaluations")].reset_index(drop=True)  # as on another text
    assert pairs(only, "attention=mha") == {"mla": "mha"}


def test_an_evaluation_is_compared_with_the_runs_that_it_is_of():
    """Not with the mean of runs of several encodings, of which one was evaluated."""
    frame = table(
        ([f"pos_encoding={name}"], seed, {"val/ppl": level + seed**2})
        for name, level in (("rope", 100.0), ("alibi", 200.0))
        for seed in (1, 2, 3)
    )
    frame["path"] = [f"sweep/run{row}" for row in range(6)]
    found = choose_baseline(groups(evaluated(frame).drop(index=range(9, 12)), by=["attention"]), None)
    assert found.words == "the same runs as trained"
    assert not found.pairs
    ((evaluation, trained),) = found.evaluations.items()
    assert trained.by_seed("val/ppl") == evaluation.by_seed("val/ppl")
    assert found.labels == {trained.label} == {"mha · as trained"}


def test_groups_that_differ_in_more_than_their_keys_are_named():
    frame = sweep(*crossing("rope alibi"), ["pos_encoding=rope", "attention=gqa"])
    by = ["pos_encoding"]
    (note,) = unequal_groups(choose_baseline(groups(frame, by=by), "rope").pairs, by)
    assert note.startswith("alibi: the combinations of attention are not those of the baseline")
    complete = frame[[config["choices"]["attention"] != "gqa" for config in frame["config"]]].reset_index(drop=True)
    assert not unequal_groups(choose_baseline(groups(complete, by=by), "rope").pairs, by)
    # A seed that only one of the two has is not compared.
    assert not unequal_groups(choose_baseline(groups(complete.drop(index=[0, 3]), by=by), "rope").pairs, by)
    later = choose_baseline(groups(complete.drop(index=[0]), by=by), "rope")
    assert unequal_groups(later.pairs, by)
