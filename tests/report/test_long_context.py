"""The long-context part of the report: verdicts at each length, curves, maps, spectra."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import newllm
from newllm.config import compose, effective
from newllm.config.compose import catalog_for
from newllm.report.__main__ import main
from newllm.report.figures import heat_maps, styled
from newllm.report.long_context import wavelengths_of
from tests.support.report_runs import make_run, make_runs, read_table, with_seed

pytestmark = pytest.mark.xdist_group("long_context")  # one process, whose fixtures are made once

BASELINE = "rope · theta 625 · scaling null"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five spectra and ALiBi, four seeds each; ALiBi's second seed has no results at the greatest length."""
    folder = tmp_path_factory.mktemp("long")
    configurations = [["theta=625"], ["theta=31250"], ["pos_encoding=rope_hybrid", "theta=6250"],
            ["pos_encoding=rope_evq", "theta=31250"], ["pos_encoding=alibi"],
            ["theta=625", "pos_encoding.scaling=yarn"]]  # fmt: skip
    make_runs(folder, configurations, seeds=(1, 2, 3, 4), long=True)
    (cut,) = folder.glob("*-alibi-*-s2-*")
    results = json.loads((cut / "results.json").read_text())
    del results["extrapolation/tail_ppl@1024"]
    (cut / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    assert main([str(runs), f"out={out}", f"baseline={BASELINE}"]) == 0
    return out


def values(runs: Path, name: str, metric: str) -> dict[str, float]:
    results_of = {
        path.name.split("-s")[1][0]: json.loads((path / "results.json").read_text()) for path in runs.glob(name)
    }
    return {seed: results[metric] for seed, results in results_of.items() if metric in results}


def test_verdicts_at_each_length_are_paired_and_corrected_together(report: Path, runs: Path) -> None:
    table = {line["group"]: line for line in read_table(report / "extrapolation-tail_ppl.csv")}
    assert len(table) == 6
    metric = "extrapolation/tail_ppl@1024"
    alibi, hybrid = values(runs, "*-alibi-*", metric), values(runs, "*-rope_hybrid-*", metric)
    assert len(alibi) == 3
    assert table["alibi"][f"{metric} mean"] == ""  # the seeds that are left say nothing
    assert table["alibi"][f"{metric} verdict"] == "1 of 4 seeds not measured"
    shorter = "extrapolation/tail_ppl@512"
    assert float(table["alibi"][f"{shorter} mean"]) == pytest.approx(
        statistics.mean(values(runs, "*-alibi-*", shorter).values())
    )
    baseline = {path.name: path for path in runs.glob("*-rope-mha-*")}
    rope = {
        name.split("-s")[1][0]: json.loads((path / "results.json").read_text())[metric]
        for name, path in baseline.items()
        if "theta: 625.0" in (text := (path / "config.yaml").read_text()) and "scaling: null" in text
    }
    paired = statistics.mean(math.log(hybrid[seed] / rope[seed]) for seed in rope)
    line = table["rope_hybrid · theta 6250"]
    assert float(line[f"{metric} difference"]) == pytest.approx(math.expm1(paired))
    assert line[f"{metric} verdict"] == "better"
    assert table[BASELINE][f"{metric} mean"]
    assert not table[BASELINE].get(f"{metric} verdict")
    everything = [
        one for one in read_table(report / "length-comparisons.csv") if one["metric"].startswith("extrapolation")
    ]
    assert {one["metric"].rpartition("@")[0] for one in everything} == {
        "extrapolation/ppl", "extrapolation/tail_ppl", "extrapolation/sliding_ppl"
    }  # fmt: skip
    everything = [*read_table(report / "length-comparisons.csv"), *read_table(report / "comparisons.csv")]
    tested = [one for one in everything if one["p corrected"]]
    assert [float(one["p corrected"]) for one in tested] == pytest.approx(
        [min(1, len(tested) * float(one["p"])) for one in tested]
    )
    assert f"The {len(tested)} comparisons of this report" in (report / "extrapolation-tail_ppl.md").read_text()


def test_every_figure_of_long_context_is_drawn(report: Path) -> None:
    drawn = {path.stem for path in report.glob("*.svg")}
    assert {"length", "length-positions", "spectra", "passkey", "passkey-depth", "distance"} <= drawn
    assert "<image" not in (report / "passkey-depth.svg").read_text()  # sharp at any size
    page = (report / "report.html").read_text()
    assert 'id="figure-passkey-depth"' in page
    assert "Chance is 50 %" in page.replace("&#37;", "%")


def test_the_ruler_shows_chance_and_accuracy(report: Path) -> None:
    table = read_table(report / "ruler.csv")
    assert {(line["task"], float(line["chance"])) for line in table} == {
        ("needle", 0.1), ("multi_key_needle", 0.25), ("two_hops", 0.25)
    }  # fmt: skip
    assert {float(line["ruler/needle@128 mean"]) for line in table if line["task"] == "needle"} == {1.0}


def test_an_evaluation_with_other_options_is_a_group_of_its_own(report: Path) -> None:
    labels = [line["group"] for line in read_table(report / "extrapolation-ppl.csv")]
    assert len(labels) == len(set(labels)) == 6
    assert sum("yarn" in label for label in labels) == 1


def test_a_map_shows_what_was_measured() -> None:
    table = pd.DataFrame({128: [1.0, 0.25], 256: [0.5, np.nan]}, index=[0.1, 0.9])
    with styled():
        figure = heat_maps({(0, "a · b"): table}, 0.5, "tokens", "depth")
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"100", "50", "25"}  # nothing where nothing was measured


def test_runs_without_long_context_have_no_such_section(tmp_path: Path) -> None:
    config = effective(compose(["samples=600"]))
    for seed in (1, 2):
        run = make_run(tmp_path / "runs", with_seed(config, seed))
        results = json.loads((run / "results.json").read_text())
        kept = {name: value for name, value in results.items() if not name.startswith("extrapolation/")}
        (run / "results.json").write_text(json.dumps(kept))
    assert main([str(tmp_path / "runs"), f"out={tmp_path / 'report'}"]) == 0
    assert 'id="length"' not in (tmp_path / "report" / "report.html").read_text()


ENCODINGS = [name for name in catalog_for().groups["pos_encoding"] if name != "none"]


@pytest.mark.parametrize("name", ENCODINGS)
def test_spectra_are_those_of_the_encodings(name: str) -> None:
    """Read from the configuration without torch, equal to what the built encoding turns by; new encodings too."""
    from newllm.position import Rope

    small = ["model.hidden_size=64", "model.heads=4", "model.num_layers=1", "model.mlp_size=64"]  # as rope_list has
    cfg = compose([f"pos_encoding={name}", *small])
    position = newllm.build_model(cfg, tokens=300).position
    turning = next((one for one in position.modules() if isinstance(one, Rope)), None)
    waves = wavelengths_of(effective(cfg), cfg.data.seq_len)
    if turning is None:
        assert waves is None
        return
    assert waves is not None
    with np.errstate(divide="ignore"):
        assert waves == pytest.approx(2 * np.pi / turning.current_inv_freq().double().numpy(), rel=1e-5)


def test_a_scaled_spectrum_is_that_of_the_length() -> None:
    config = effective(compose(["pos_encoding.scaling={kind:position_interpolation}"]))
    plain = effective(compose([]))
    assert wavelengths_of(config, 1024) == pytest.approx(8 * wavelengths_of(plain, 1024))
    assert wavelengths_of(config, 128) == pytest.approx(wavelengths_of(plain, 128))
    assert wavelengths_of(effective(compose(["pos_encoding=alibi"])), 128) is None


def test_spectra_need_no_torch() -> None:
    code = "import sys, newllm.report.sections\n"
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)


def test_published_repeats_of_one_configuration_are_averaged(tmp_path: Path) -> None:
    config = effective(compose(["experiment=rope_frequencies"]))
    make_run(tmp_path / "runs", with_seed(config, 1), tables=False)
    assert main([str(tmp_path / "runs"), f"out={tmp_path}", "formats=[csv]"]) == 0
    table = {(line["published run"], line["metric"]): line for line in read_table(tmp_path / "published.csv")}
    line = table["geo_500k", "extrapolation/ppl@2048"]
    assert line["published runs"] == "22"
    assert float(line["published"]) == pytest.approx(6.86, abs=0.02)
