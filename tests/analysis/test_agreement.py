from math import isnan

import pytest

from newllm.analysis.agreement import compare_groups, only_in_one, pair_runs, summarize
from newllm.analysis.frame import load_runs
from newllm.analysis.run_groups import groups
from tests.support.run_folders import config, folder, table

PUBLISHED = ["experiment=position_encoding", "pos_encoding=rope"]


def test_a_group_is_compared_with_the_published_run_of_its_conditions():
    runs = [(PUBLISHED, seed, {"val/ppl": ppl, "val/best_ppl": ppl}) for seed, ppl in ((1, 100.0), (2, 110.0))]
    runs += [(["pos_encoding=alibi"], 1, {"val/ppl": 100.0})]
    by_metric = {line.metric: line for _, line in compare_groups(groups(table(runs)))}
    assert {"val/ppl", "val/best_ppl"} == set(by_metric)
    line = by_metric["val/ppl"]
    assert (line.run.run, line.ours, line.published) == ("rope25-5k", 105.0, 110.4)
    assert line.difference == pytest.approx(105.0 / 110.4 - 1)
    assert line.run.source.startswith("rato-tokyo/new-llm@")
    assert line.run.status in ("log", "document")


def test_a_group_of_several_configurations_is_compared_with_none_of_them():
    runs = [(PUBLISHED, 1, {"val/ppl": 100.0}), ([*PUBLISHED, "rotary_pct=0.5"], 1, {"val/ppl": 110.0})]
    assert compare_groups(groups(table(runs)))
    assert compare_groups(groups(table(runs), by=["attention"])) == []


def test_one_published_value_and_one_seed():
    lines = compare_groups(groups(table([(PUBLISHED, 42, {"val/best_ppl": 107.4})])))
    (line,) = (line for _, line in lines if line.run.run == "rope25-5k")
    assert line.difference == pytest.approx(0)
    assert isnan(line.std)


def test_the_same_configurations_on_another_machine(tmp_path):
    for place, factor in (("a", 1.0), ("b", 1.02)):
        for seed in (1, 2):
            results = {"val/ppl": 100.0 * factor * seed, "params/total": 5, "data/fact_rows": 0}
            folder(tmp_path / place, config(seed=seed), results)
    folder(tmp_path / "a", config("pos_encoding=alibi"), {"val/ppl": 1.0})
    folder(tmp_path / "b", config("pos_encoding=nope"), {"val/ppl": 1.0})
    folder(tmp_path / "b", config(seed=3), {"val/ppl": 1.0}, state="failed")
    pairs = pair_runs(load_runs(tmp_path / "a"), load_runs(tmp_path / "b"))
    ppl = pairs[pairs["metric"] == "val/ppl"]
    assert ppl[["seed", "a", "b"]].to_numpy().tolist() == [[1, 100.0, 102.0], [2, 200.0, 204.0]]
    assert ppl["difference"].tolist() == pytest.approx([0.02, 0.02])
    assert (tmp_path / "b").as_posix() in ppl["run_b"].iloc[0]
    summed = {one.metric: one for one in summarize(pairs).itertuples()}
    assert (summed["val/ppl"].runs, summed["val/ppl"].equal) == (2, 0)
    assert summed["val/ppl"].mean == summed["val/ppl"].largest == pytest.approx(0.02)
    assert (summed["params/total"].equal, summed["params/total"].largest) == (2, 0.0)
    assert (summed["data/fact_rows"].equal, summed["data/fact_rows"].mean) == (2, 0.0)  # 0 and 0


def test_runs_that_went_well_on_one_machine_only_are_counted(tmp_path):
    for place, bad in (("a", 1), ("b", 2)):
        for seed in (1, 2, 3):
            folder(tmp_path / place, config(seed=seed), {"val/ppl": None if seed == bad else 100.0 + seed})
    folder(tmp_path / "a", config(seed=4), {"val/ppl": 100.0})
    folder(tmp_path / "b", config(seed=4), None, state="failed")
    a, b = load_runs(tmp_path / "a"), load_runs(tmp_path / "b")
    assert pair_runs(a, b).query("metric == 'val/ppl'")["seed"].tolist() == [3]
    assert only_in_one(a, b, "val/ppl") == 3


def test_a_group_with_missing_seeds_has_no_distance_to_published_runs():
    runs = [(PUBLISHED, seed, {"val/ppl": ppl}) for seed, ppl in ((1, 100.0), (2, 110.0), (3, float("inf")))]
    (line,) = (one for _, one in compare_groups(groups(table(runs))) if one.metric == "val/ppl")
    assert isnan(line.ours)
    assert isnan(line.difference)


def test_repeats_in_one_set_count_with_their_mean():
    a = table([([], 1, {"val/ppl": 100.0}), ([], 1, {"val/ppl": 120.0}), (["lr=0.1"], 1, {"val/ppl": 1.0})])
    b = table([([], 1, {"val/ppl": 99.0})])
    pair = pair_runs(a, b).set_index("metric").loc["val/ppl"]
    assert (pair["a"], pair["b"], pair["difference"]) == (110.0, 99.0, pytest.approx(-0.1))


def test_a_difference_from_zero_has_no_ratio():
    frames = [table([([], 1, {"val/gap": value, "val/down": -value})]) for value in (0.0, 2.0)]
    summed = summarize(pair_runs(*frames)).set_index("metric")
    assert isnan(summed.loc["val/gap", "mean"])
    assert isnan(summed.loc["val/gap", "largest"])


def test_numbers_of_other_tokens_are_not_compared():
    a, b = (table([([], seed, {"val/ppl": 100.0, "params/total": 5}) for seed in (1, 2)]) for _ in range(2))
    a["scored"] = b["scored"] = [{"val/ppl": "this"}, {"val/ppl": "this"}]
    b.at[1, "scored"] = {"val/ppl": "that"}
    pairs = pair_runs(a, b)
    assert pairs[pairs["metric"] == "val/ppl"]["seed"].tolist() == [1]
    assert len(pairs[pairs["metric"] == "params/total"]) == 2
