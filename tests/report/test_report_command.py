"""The command: what it writes, and what bad input gets."""

import json
import math
import re
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from newllm.config import compose, effective
from newllm.report.__main__ import main, shorten
from tests.support.report_runs import grid, make_run, make_runs, read_table, with_seed, write_status
from tests.support.run_folders import config, folder

pytestmark = pytest.mark.xdist_group("report_command")  # one process, whose fixtures are made once


@pytest.fixture(scope="module")
def report(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole report of the sweep; its folder."""
    out = tmp_path_factory.mktemp("report")
    assert main([str(sweep), f"out={out}", "baseline=[pos_encoding=rope,attention=mha,theta=1e4]"]) == 0
    return out


def ppl_by_seed(sweep: Path, name: str) -> dict[str, float]:
    runs = {path.name: json.loads((path / "results.json").read_text())["val/ppl"] for path in sweep.glob(name)}
    return {re.search(r"-s(\d+)-", run)[1]: ppl for run, ppl in runs.items()}  # type: ignore[index]


def test_the_main_table_holds_means_deviations_and_paired_differences(report: Path, sweep: Path) -> None:
    table = {line["group"]: line for line in read_table(report / "main.csv")}
    assert len(table) == 6
    alibi = ppl_by_seed(sweep, "*-alibi-mha-*")
    line = table["alibi · mha"]
    assert (line["seeds"], line["runs"]) == ("4", "4")
    assert float(line["val/ppl mean"]) == pytest.approx(statistics.mean(alibi.values()), rel=1e-12)
    assert float(line["val/ppl std"]) == pytest.approx(statistics.stdev(alibi.values()), rel=1e-9)
    rope = {
        seed: ppl
        for run in sweep.glob("*-rope-mha-*")
        if "theta: 10000.0" in (run / "config.yaml").read_text()
        for seed, ppl in ppl_by_seed(sweep, run.name).items()
    }
    paired = statistics.mean(math.log(alibi[seed] / rope[seed]) for seed in rope)
    assert float(line["difference"]) == pytest.approx(math.expm1(paired), rel=1e-9)
    assert line["verdict"] == "worse"
    assert table["nope · mha"]["verdict"] == "worse"
    assert table["rope · mha · theta 10000"]["difference"] == "0.0"


def test_the_best_mean_is_bold_in_every_format(report: Path) -> None:
    table = read_table(report / "main.csv")
    best = min(table, key=lambda line: float(line["val/bits_per_byte mean"]))
    row = next(line for line in (report / "main.md").read_text().splitlines() if best["group"] in line)
    assert "**" in row
    tex = (report / "main.tex").read_text()
    assert r"\toprule" in tex
    assert r"\textbf{" in tex
    assert r"kv\_dim" in tex


def test_every_figure_is_there_as_svg_and_png(report: Path) -> None:
    figures = {path.stem for path in report.glob("*.svg")}
    wanted = {"curves", "position", "length", "qk", "qk-bands-q", "qk-bands-k", "cache", "axis-theta", "axis-kv_dim",
              "axis-pos_encoding", "reversal"}  # fmt: skip
    assert wanted <= figures
    for name in figures:
        assert ElementTree.parse(report / f"{name}.svg").getroot().tag.endswith("svg")
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert {">Training<", ">Validation<"} <= set(re.findall(">[TV]\\w+<", (report / "curves.svg").read_text()))


def test_runs_without_results_are_listed_with_their_reasons(report: Path) -> None:
    table = {line["run"]: line for line in read_table(report / "unfinished.csv")}
    assert {name: line["state"] for name, line in table.items()} == {
        "broke": "failed", "waits": "queued", "torn": "unreadable"
    }  # fmt: skip
    assert table["broke"]["reason"] == "The loss is not finite at step 40."
    assert "results.json" in table["torn"]["reason"]


def test_the_page_asks_for_nothing_outside_itself(report: Path) -> None:
    page = (report / "report.html").read_text()
    links = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", page)
    assert not [link for link in links if not link.startswith(("#", "data:"))]
    assert not re.findall(r"@import|fetch\(|XMLHttpRequest", page)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))  # also those of all figures together


def test_the_page_is_small(report: Path) -> None:
    assert (report / "report.html").stat().st_size < 2_000_000


def test_only_the_formats_asked_for(sweep: Path, tmp_path: Path) -> None:
    assert main([str(sweep), f"out={tmp_path}", "formats=[csv]", "metrics=[val/ppl]"]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv"}
    assert "val/bits_per_byte mean" not in read_table(tmp_path / "main.csv")[0]


def test_grouping_and_choosing_runs(sweep: Path, tmp_path: Path) -> None:
    chosen = ["by=pos_encoding", "where=[attention=mha,seed=1|2]", "formats=csv"]
    assert main([str(sweep), f"out={tmp_path}", *chosen]) == 0
    table = {line["group"]: line for line in read_table(tmp_path / "main.csv")}
    assert {name: line["seeds"] for name, line in table.items()} == {"rope": "2", "alibi": "2", "nope": "2"}
    assert table["rope"]["runs"] == "4"


def test_one_seed_never_gives_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_runs(tmp_path, grid(pos_encoding=["rope", "nope"]), seeds=[1], tables=False)
    assert main([str(tmp_path), "formats=[csv,md]"]) == 0
    line = next(line for line in read_table(tmp_path / "report" / "main.csv") if line["group"] == "nope")
    assert line["verdict"] == "one seed"
    assert line["difference low"] == ""
    said = (
        "A baseline has one seed (rope), which says nothing about other seeds: what is compared with it has no verdict."
    )
    assert capsys.readouterr().out.startswith(said)


def test_the_first_lines_say_what_missing_seeds_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A baseline costs others their verdicts; a metric that is not compared costs none."""
    for encoding, level in (("rope", 100.0), ("alibi", 110.0)):
        for seed in (1, 2, 3):
            lost = {"rope": "val/loss", "alibi": "val/bits_per_byte"}[encoding] if seed == 2 else ""
            results = {"val/ppl": level + seed**2, "val/loss": level - seed**2, "val/bits_per_byte": 1.0 + seed}
            null = {name: None if name == lost else value for name, value in results.items()}
            folder(tmp_path, config(f"pos_encoding={encoding}", seed=seed), null)
    lost = folder(tmp_path, config("pos_encoding=rope", seed=4), None)
    words = ["formats=[csv]", "size=data/val_tokens", "baseline=rope", "compare=[val/ppl,val/loss]"]
    assert main([str(tmp_path), *words]) == 0
    out = capsys.readouterr().out
    gone = f"Its results.json is gone; newllm status {lost} --retry interrupted evaluates it again, without training."
    assert f"{lost.name}: {gone}" in out
    assert out.splitlines()[:2] == [
        "alibi: 1 of 3 seeds not finite (val/bits_per_byte), so its mean is never the best.",
        "rope: 1 of 3 seeds not finite (val/loss), so what is compared with it has no verdict, and its mean is never "
        "the best.",
    ]
    verdicts = {line["metric"]: line["verdict"] for line in read_table(tmp_path / "report" / "comparisons.csv")}
    assert verdicts == {"val/ppl": "worse", "val/loss": "baseline: 1 of 3 seeds not finite"}


def test_a_verdict_of_the_published_rule_says_if_the_interval_does_not_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"rope": [100.0, 101.0, 99.0], "alibi": [95.0, 95.0, 99.5]}
    for encoding, numbers in values.items():
        for seed, value in enumerate(numbers):
            folder(tmp_path, config(f"pos_encoding={encoding}", seed=seed), {"val/ppl": value, "val/loss": None})
    words = [str(tmp_path), "formats=[csv]", "size=data/val_tokens"]
    assert main([*words, "verdict=published"]) == 0
    assert "better (the interval includes 0)" in capsys.readouterr().out
    assert main([*words, "compare=[val/loss]"]) == 2
    assert "no finished run has a finite val/loss" in capsys.readouterr().err


def test_survivors_do_not_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds that diverged, failed or gave null or infinity: no verdict, no best mean, and it is said first."""
    make_runs(tmp_path, grid(pos_encoding=["rope", "alibi", "nope", "rope_alibi"]), seeds=range(1, 8))
    make_runs(tmp_path, grid(pos_encoding=["rope_hybrid"]), seeds=[1, 2])
    for name in ("rope_alibi", "alibi", "nope"):  # the others are far better
        for path in tmp_path.glob(f"*-{name}-mha-*"):
            results = json.loads((path / "results.json").read_text())
            (path / "results.json").write_text(json.dumps(results | {"val/ppl": results["val/ppl"] * 0.5}))
    for path, change in zip([*tmp_path.glob("*-alibi-*-s[12]-*")], ("null", "Infinity"), strict=True):
        text = (path / "results.json").read_text()
        (path / "results.json").write_text(re.sub(r'"val/ppl": [\d.]+', f'"val/ppl": {change}', text))
    for path in [*tmp_path.glob("*-nope-*-s[3-5]-*"), *tmp_path.glob("*-rope_hybrid-*")]:
        (path / "results.json").unlink()
        write_status(path, "failed", error="Training diverged at step 40: the loss is nan")
    baseline = "baseline=[pos_encoding=rope]"
    assert main([str(tmp_path), "formats=[csv,md,html]", "metrics=[val/ppl,params/total]", baseline]) == 0
    shown = capsys.readouterr().out
    words = {
        "alibi": "2 of 7 seeds not finite",
        "nope": "3 of 7 seeds diverged",
        "rope_hybrid": "2 of 2 seeds diverged",
    }
    left = {"alibi": ("5", "3700000.0"), "nope": ("4", "3700000.0"), "rope_hybrid": ("0", "")}
    table = {line["group"]: line for line in read_table(tmp_path / "report" / "main.csv")}
    compared = {line["group"]: line for line in read_table(tmp_path / "report" / "comparisons.csv")}
    for place, (group, reason) in enumerate(words.items()):
        assert shown.splitlines()[place].startswith(f"{group}: {reason} (val/ppl), so it has no verdict")
        assert table[group]["verdict"] == compared[group]["verdict"] == table[group]["missing"] == reason
        assert (table[group]["seeds"], table[group]["params/total mean"]) == left[group]
        assert table[group]["val/ppl mean"] == ""
        assert compared[group]["difference"] == compared[group]["p"] == compared[group]["group mean"] == ""
    assert (table["rope_alibi"]["verdict"], table["rope_alibi"]["seeds"]) == ("better", "7")
    (best,) = [line for line in (tmp_path / "report" / "main.md").read_text().splitlines() if "**" in line]
    assert "rope_alibi" in best
    page = (tmp_path / "report" / "report.html").read_text()
    assert "nope (3 of 7 seeds diverged)" in page


def test_runs_that_do_not_compare_get_separate_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_runs(tmp_path, grid(pos_encoding=["rope", "alibi"], **{"data.vocab_size": [1024, 2048]}), tables=False)
    assert main([str(tmp_path), "formats=[csv,html]"]) == 0
    report = tmp_path / "report"
    assert [len(read_table(report / f"main-{part}.csv")) for part in (1, 2)] == [2, 2]
    assert "do not have the same tokenizer" in capsys.readouterr().out


def test_a_crossed_sweep_is_compared_by_factor(tmp_path: Path) -> None:
    """The README's sweep and command, without theta: each group with its counterpart, and the factors by themselves."""
    attentions = [["attention=mha"], ["attention=mla", "kv_dim=16"], ["attention=mla", "kv_dim=32"]]
    runs = [[f"pos_encoding={name}", *attention] for name in ("rope", "alibi", "nope") for attention in attentions]
    make_runs(tmp_path / "sweep", runs, tables=False)
    assert main([str(tmp_path / "sweep"), "baseline=pos_encoding=rope", "formats=[csv]"]) == 0
    report = tmp_path / "sweep" / "report"
    table = {line["group"]: line for line in read_table(report / "main.csv")}
    assert [table[f"rope · {one}"]["difference"] for one in ("mha", "mla · kv_dim 16")] == ["0.0", "0.0"]
    alibi, rope = (ppl_by_seed(tmp_path / "sweep", f"*-{name}-mha-*") for name in ("alibi", "rope"))
    paired = statistics.mean(math.log(alibi[seed] / rope[seed]) for seed in rope)
    assert float(table["alibi · mha"]["difference"]) == pytest.approx(math.expm1(paired), rel=1e-9)
    assert {line["baseline"] for line in read_table(report / "comparisons.csv")} == {
        "rope · mha", "rope · mla · kv_dim 16", "rope · mla · kv_dim 32"
    }  # fmt: skip
    effects = {line["change"]: line for line in read_table(report / "effects.csv")}
    assert effects["alibi against rope"]["combinations"] == "3"
    assert float(effects["alibi against rope"]["difference"]) == pytest.approx(math.expm1(0.067), abs=0.02)
    assert {"mla · kv_dim 16 against mha", "mla · kv_dim 32 against mha"} <= effects.keys()
    interactions = {line["change"]: line for line in read_table(report / "interactions.csv")}
    assert interactions["nope against rope, with mla · kv_dim 32 against with mha"]["verdict"] == "inconclusive"


def test_sizes_give_a_scaling_law(tmp_path: Path) -> None:
    make_runs(tmp_path, grid(samples=[600, 1200, 2400, 4800]), tables=False, noise=0.001)
    assert main([str(tmp_path), "formats=[csv,svg]"]) == 0
    (law,) = read_table(tmp_path / "report" / "scaling.csv")
    assert float(law["alpha"]) == pytest.approx(-0.4, abs=0.005)  # as constructed
    assert (tmp_path / "report" / "scaling.svg").exists()


def test_another_result_set_is_compared_run_by_run(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_runs(other, grid(pos_encoding=["rope", "alibi"]), seeds=(1, 2), shift=0.01, tables=False)
    assert main([str(sweep), f"against={other}", f"out={tmp_path / 'report'}", "formats=csv"]) == 0
    table = {line["metric"]: line for line in read_table(tmp_path / "report" / "agreement.csv")}
    assert table["val/ppl"]["runs"] == "4"
    assert float(table["val/ppl"]["mean difference"]) == pytest.approx(math.expm1(0.01), rel=1e-6)


def test_two_sweeps_show_the_noise_of_repeats(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_runs(tmp_path / "again", grid(pos_encoding=["rope"]), seeds=(1, 2), shift=0.01, tables=False)
    assert main([str(sweep), str(tmp_path / "again"), f"out={tmp_path / 'report'}", "formats=csv"]) == 0
    assert "2 combinations of configuration and seed were run more than once (4 runs)" in capsys.readouterr().out
    table = {line["group"]: line for line in read_table(tmp_path / "report" / "main.csv")}
    assert (table["rope · mha · theta 10000"]["seeds"], table["rope · mha · theta 10000"]["runs"]) == ("4", "6")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["baseline=ropee"], "baseline=ropee"),
        (["baseline=model=nano"], "fits 6 groups"),
        (["basline=rope"], "did you mean baseline"),
        (["metrics=[val/pl]"], "did you mean val/ppl"),
        (["by=pos_encodin"], "did you mean pos_encoding"),
        (["confidence=high"], "expected a number"),
        (["confidence=1.5"], "between 0 and 1"),
        (["family=all"], "expected report or table"),
        (["interval=bootstrap"], "interval=bootstrap needs 20 paired seeds"),
        (["verdict=strict"], "expected one of: interval, published"),
        (["verdict.least_seed=4"], "did you mean verdict.least_seeds"),
        (["formats=[pdf]"], "expected one of: csv, md, tex, html, svg, png"),
        (["where=[attention]"], "expected key=value"),
        (["where=[attnetion=mha]"], "did you mean attention"),
        (["size=data/train_token"], "did you mean data/train_tokens"),
        (["by=[model"], "can't be read"),
        (["against=nowhere"], "no such folder"),
        (["nowhere"], "no such folder"),
    ],
)
def test_bad_input_gets_a_sentence(
    words: list[str],
    message: str,
    sweep: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(sweep), *words, f"out={tmp_path / 'report'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_without_a_finished_run_there_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no runs found" in capsys.readouterr().err
    (run,) = make_runs(tmp_path, [[]], seeds=[1], tables=False)
    write_status(run, "failed", error="Out of memory.")
    assert main([str(tmp_path)]) == 2
    assert "no run is done (1 failed)" in capsys.readouterr().err


def test_it_needs_a_folder_and_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "baseline=null" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["baseline=rope"]) == 2


def test_runs_are_compared_with_published_runs_of_their_conditions(tmp_path: Path) -> None:
    protocol = effective(compose(["experiment=position_encoding", "pos_encoding=rope"]))
    make_run(tmp_path / "runs", with_seed(protocol, 42))
    assert main([str(tmp_path / "runs"), f"out={tmp_path}", "formats=[csv]"]) == 0
    table = {(line["published run"], line["metric"]): line for line in read_table(tmp_path / "published.csv")}
    assert float(table["rope25-5k", "val/best_ppl"]["published"]) == 107.4


def test_long_names_of_groups_leave_room_for_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"pos_encoding.frequencies.{'x' * 60}{end}" for end in "ab"]
    assert [len(name) for name in shorten(names, 44)] == [44, 44]
    assert len({*shorten([f"{name}{'y' * 30}" for name in names], 44)}) == 2
    assert shorten(["rope", "alibi"], 44) == ["rope", "alibi"]
    layers = ["pos_encoding.layers=[0,2]", "pos_encoding.layers=[0,1,2,3]"]
    axes = ["attention.kernel=plain", "optim.clip=0.25", "trainer.patience=3", "model.init_std=0.0123"]
    make_runs(tmp_path, [[], *[[one, *axes] for one in layers]], tables=False)
    assert (
        main([str(tmp_path), "formats=[csv]", "by=[pos_encoding.layers,optim.clip,trainer.patience,model.init_std]"])
        == 0
    )
    out = capsys.readouterr().out
    assert "Names of groups are shortened" in out
    assert all(len(line) <= 110 for line in out.splitlines() if "±" in line and "Mean" not in line)
    assert max(len(line["group"]) for line in read_table(tmp_path / "report" / "main.csv")) > 44
