"""The published tables, and the distance of a run to those with its conditions."""

from math import exp, log

import pytest
from omegaconf import OmegaConf

import newllm
from newllm.results.reference import distance, findings, published

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
    return {(line["run"], line["metric"]): line for line in lines}


@pytest.mark.parametrize("line", [line for line in published() if line["experiment"]], ids=lambda line: line["run"])
def test_each_published_run_is_found_by_its_experiment(line):
    axes = [f"{axis}={line[axis]}" for axis in ("rotary_pct", "theta", "slope", "kv_dim") if line[axis]]
    cfg = newllm.compose([f"experiment={line['experiment']}", f"pos_encoding={line['pos_encoding']}", *axes])
    lines = distance(cfg, RESULTS)
    assert (line["run"], "val/best_ppl") in {(found["run"], found["metric"]) for found in lines}


def test_numbers_and_their_distance():
    found = compare("experiment=rope_settings", "theta=5000")
    assert {run for run, _ in found} == {"rope100-theta5000-5k"}
    line = found["rope100-theta5000-5k", "val/ppl"]
    assert (line["ours"], line["published"]) == (108.5, 105.4)
    assert line["difference"] == pytest.approx(108.5 / 105.4 - 1)
    assert found["rope100-theta5000-5k", "params/total"]["difference"] == 0
    assert ("rope100-theta5000-5k", "val/bits_per_byte") not in found  # not published


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
    assert findings(newllm.compose(overrides), RESULTS) is None


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
    section = findings(stored, RESULTS)
    assert section is not None
    assert section.tables["reference"] == distance(cfg, RESULTS)
    assert "mla-contiguous-10k" in section.body[0]
    assert section.body[1][0]["difference"] == f"{106 / 455 - 1:+.1%}"


def test_position_tables_are_those_of_the_last_epoch():
    """Published buckets recombine, by width, to the last epoch's perplexity: a check on the figures typed in."""
    checked = 0
    for line in published():
        buckets = {name: float(cell) for name, cell in line.items() if "by_position" in name and cell}
        if len(buckets) == 5 and line["val/ppl"] and line["weighting"] != "batch_mean":
            widths = [16, 16, 32, 32, 32]
            whole = exp(sum(w * log(ppl) for w, ppl in zip(widths, buckets.values(), strict=True)) / 128)
            assert whole == pytest.approx(float(line["val/ppl"]), rel=2e-3), line["run"]
            checked += 1
    assert checked >= 7
