"""The published tables, and the distance of a run to those with its conditions."""

from functools import cache
from math import exp, log
from statistics import fmean, pstdev

import pytest
from omegaconf import OmegaConf

import newllm
from newllm.analysis.published import distance, for_console, published_runs, reference_table

RESULTS = {
    "val/ppl": 108.5,
    "val/best_ppl": 106.0,
    "val/bits_per_byte": 1.5,
    "reversal/backward_ppl": 700.0,
    "qk/q_max": 9.0,
    "params/total": 70420480,
}


def compare(*overrides):
    lines = distance(newllm.compose(overrides), RESULTS)
    return {(line.run.run, line.metric): line for line in lines}


OURS = [one for one in published_runs() if one.experiment]
SET = ("rotary_pct", "theta", "slope", "kv_dim", "alpha", "p", "omf", "steepness", "midpoint")
SHAPE = ("model.layers", "model.context_dim", "model.num_input_tokens", "data.documents")


@cache
def composed(experiment, encoding):
    chosen = [f"pos_encoding={encoding}"] if encoding else []
    return newllm.compose([f"experiment={experiment}", *chosen])


@pytest.mark.parametrize("one", OURS, ids=lambda one: one.run)
def test_each_published_configuration_is_found_by_its_experiment(one):
    cfg = composed(one.experiment, one.conditions.get("pos_encoding")).copy()
    for name, cell in one.conditions.items():
        if (axis := name.rpartition(".")[2]) in SET:
            cfg[axis] = float(cell)
        if name in SHAPE:
            OmegaConf.update(cfg, name, int(cell))
    results = dict.fromkeys(one.numbers, 7.0)
    compared = {(line.run.run, line.metric) for line in distance(cfg, results)}
    wanted = {name for name in one.numbers if name == "val/best_ppl" or name.startswith("extrapolation/")}
    assert wanted
    assert {(one.run, name) for name in wanted} <= compared
    neighbours = {other.run for other in OURS if other.experiment == one.experiment}
    assert {run for run, _ in compared} & neighbours == {one.run}


def test_runs_of_one_configuration_are_pooled():
    """geo_500k ran 22 times at 6e-4, on four machines; the mean of these runs is compared with ours."""
    one = next(one for one in published_runs() if one.run == "geo_500k")
    at_end = one.numbers["extrapolation/ppl@16384"]
    assert (one.runs, min(at_end), max(at_end)) == (22, 15.788, 21.327)
    results = {"extrapolation/ppl@16384": 20.0, "extrapolation/tail_ppl@16384": 20.0}
    (line,) = distance(newllm.compose(["experiment=rope_frequencies"]), results)
    assert (line.run.run, len(line.numbers)) == ("geo_500k", 22)
    assert line.published == pytest.approx(fmean(at_end))
    assert line.std == pytest.approx(pstdev(at_end))  # as published
    assert "up to 22 runs" in for_console([line])[0]


@pytest.mark.parametrize(
    "change", ["lr=3e-4", "batch_size=16", "data.eot=true", "eval.extrapolation.chunks=5", "pos_encoding.scaling=yarn",
               "data.val_hub_split=null"],
)  # fmt: skip
def test_a_frequency_run_under_other_conditions_is_not_compared(change):
    cfg = newllm.compose(["experiment=rope_frequencies", change])
    assert not [line for line in distance(cfg, {"extrapolation/ppl@16384": 20.0}) if line.run.run == "geo_500k"]


def test_published_means_and_deviations_follow_from_the_runs():
    """A check on the figures typed in: each machine's mean ± population standard deviation, as published."""
    lines = [line for line in reference_table("rope_frequencies") if line["experiment"] == "rope_frequencies_3x3"]
    stated = {
        ("geo_500k", "A100"): (6.826, 0.048, 18.207, 0.768), ("geo_500k", "R6000"): (6.821, 0.067, 19.386, 2.007),
        ("hybrid_a0.2_t100k", "A100"): (6.699, 0.168, 17.324, 0.360),
        ("hybrid_a0.2_t100k", "RTX6000"): (6.693, 0.124, 16.903, 1.510),
        ("anchpoly_p3.9_omf0.3_t500k", "R6000"): (6.620, 0.245, 17.945, 0.546),
    }  # fmt: skip
    for (run, machine), numbers in stated.items():
        some = [line for line in lines if (line["run"], line["machine"]) == (run, machine)]
        values = [[float(line[f"extrapolation/ppl@{length}"]) for line in some] for length in (2048, 16384)]
        got = [value for side in values for value in (fmean(side), pstdev(side))]
        assert got == pytest.approx(list(numbers), abs=6e-4), (run, machine)
    ten = [line for line in reference_table("rope_frequencies") if line["experiment"] == "rope_frequencies_2x10"]
    geo = [float(line["extrapolation/ppl@16384"]) for line in ten if line["run"] == "geo_500k" and line["machine"]]
    assert (len(geo), fmean(geo), pstdev(geo)) == (10, pytest.approx(18.798, abs=6e-4), pytest.approx(1.643, abs=6e-4))


def test_numbers_and_their_distance():
    lines = compare("experiment=rope_settings", "theta=5000")
    assert {run for run, _ in lines} == {"rope100-theta5000-5k"}
    line = lines["rope100-theta5000-5k", "val/ppl"]
    assert (line.ours, line.published) == (108.5, 105.4)
    assert line.difference == pytest.approx(108.5 / 105.4 - 1)
    assert lines["rope100-theta5000-5k", "params/total"].difference == 0
    assert ("rope100-theta5000-5k", "val/bits_per_byte") not in lines  # not published


@pytest.mark.parametrize(
    "change",
    [
        "data=stdlib",
        "model=tiny",
        "data.tokenizer=auto",
        "samples=7000",
        "data.split=document",
        "rotary_pct=0.5",
        "seq_len=64",
    ],
)
def test_nothing_is_compared_under_other_conditions(change):
    overrides = ["experiment=position_encoding", change]
    if change == "data=stdlib":  # which has no hub tokenizer set
        overrides.append("data.tokenizer=EleutherAI/pythia-70m")
    assert compare(*overrides) == {}


def test_metrics_computed_otherwise_are_left_out():
    published_way = compare("experiment=position_encoding")
    run = "rope25-5k"
    assert {(run, "val/ppl"), (run, "val/best_ppl"), (run, "reversal/backward_ppl")} <= published_way.keys()
    assert (run, "reversal/backward_ppl") not in compare("experiment=position_encoding", "eval.reversal.scoring=answer")
    assert (run, "val/ppl") not in compare("experiment=position_encoding", "eval.loss.weighting=batch_mean")
    best = compare("experiment=position_encoding", "trainer.eval_weights=best")
    assert (run, "val/best_ppl") in best
    assert (run, "val/ppl") not in best


def test_the_effective_configuration_of_a_stored_run_serves_as_well():
    cfg = newllm.compose(["experiment=mla"])
    stored = OmegaConf.to_container(cfg, resolve=True)
    lines = distance(stored, RESULTS)
    assert lines == distance(cfg, RESULTS)
    sentence, table = for_console(lines)[:2]
    assert "mla-contiguous-10k" in sentence
    assert table[0]["difference"] == f"{106 / 455 - 1:+.1%}"


def test_position_tables_are_those_of_the_last_epoch():
    """Published buckets recombine, by width, to the last epoch's perplexity: a check on the figures typed in."""
    checked = 0
    for line in reference_table("runs"):
        buckets = {name: float(cell) for name, cell in line.items() if "by_position" in name and cell}
        if len(buckets) == 5 and line["val/ppl"] and line["weighting"] != "batch_mean":
            widths = [16, 16, 32, 32, 32]
            whole = exp(sum(w * log(ppl) for w, ppl in zip(widths, buckets.values(), strict=True)) / 128)
            assert whole == pytest.approx(float(line["val/ppl"]), rel=2e-3), line["run"]
            checked += 1
    assert checked >= 7


def context_token(*overrides):
    """Distance of made-up results of the published protocol of the context/token model."""
    results = {"val/best_ppl": 400.0, "val/accuracy": 0.19, "context/rank_share@val": 0.75, "phase1/iterations": 7,
               "params/total": 52_782_336}  # fmt: skip
    lines = distance(newllm.compose(["experiment=context_token", "data.documents=100", *overrides]), results)
    return {line.metric: line.published for line in lines}


def test_a_shape_is_compared_with_its_own_published_runs():
    assert context_token() == {"val/best_ppl": 489.8, "val/accuracy": 0.185, "context/rank_share@val": 0.752,
                               "phase1/iterations": 7, "params/total": 52_782_336}  # fmt: skip
    assert context_token("model=context_token_3l_1536_2tok")["val/best_ppl"] == 400.9
    assert context_token("model=context_token", "model.layers=9")["val/best_ppl"] == 505.4


@pytest.mark.parametrize(
    "change", ["objective.weight=0.9", "phase1=several_steps", "trainer.shuffle=true", "batch_size=16", "data.eot=true",
               "data.val_documents=[2000,2019]", "model.layers=5", "objective=oacd"],
)  # fmt: skip
def test_a_context_token_run_under_other_conditions_is_not_compared(change):
    assert context_token(change) == {}


def test_context_token_numbers_that_were_measured_otherwise_are_left_out():
    """The published ones are of the best epoch, and of ranks that are not centred."""
    assert "val/accuracy" not in context_token("trainer.eval_weights=last")
    assert "val/best_ppl" in context_token("trainer.eval_weights=last")
    assert "context/rank_share@val" not in context_token("eval.effective_rank.centred=true")
    assert "context/rank_share@val" not in context_token("eval.effective_rank.samples=5000")


def test_published_courses_end_where_their_runs_do():
    """Perplexity falls to the best epoch's and training stops one epoch later; phase 1 stops by its rule."""
    runs = {line["run"]: line for line in reference_table("context_token")}
    epochs, iterations = {}, {}
    for line in reference_table("context_token_epochs"):
        epochs.setdefault(line["run"], []).append(line)
    for line in reference_table("context_token_phase1"):
        iterations.setdefault(line["run"], []).append(line)
    assert len(epochs) == len(iterations) == 10
    for run, lines in epochs.items():
        perplexities = [float(line["val/ppl"]) for line in lines]
        best = perplexities.index(min(perplexities))
        assert perplexities[best] == float(runs[run]["val/best_ppl"])
        assert best + 1 == int(runs[run]["val/best_epoch"]) == len(lines) - 1
        assert lines[best]["val/accuracy"] == runs[run]["val/accuracy"]
    for run, lines in iterations.items():
        shares = [float(line["converged"]) for line in lines]
        assert shares[-1] >= 0.99 > max(shares[:-1])
        bound = -0.8 * (int(runs[run]["model.context_dim"]) / 8000) ** 0.5
        assert float(lines[-1]["loss"]) == pytest.approx(bound, rel=0.02)
        assert (lines[-1]["iteration"], lines[-1]["loss"]) == (runs[run]["phase1/iterations"], runs[run]["phase1/loss"])
