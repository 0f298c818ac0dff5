"""Numbers are compared and averaged only where the same tokens were scored."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from newllm.analysis.scored import fingerprint
from newllm.report.__main__ import main
from tests.support.report_runs import read_table
from tests.support.run_folders import config, folder

SHORT, USUAL = ["eval=[loss,extrapolation]", "eval.extrapolation.lengths=[64,128]"], ["eval=[loss,extrapolation]"]
LEVEL = {"rope": 5.0, "alibi": 5.1}


def run(root: Path, encoding: str, seed: int, options: list[str], lengths: Mapping[int, str], text: str = "t") -> Path:
    """A finished run whose windows are those of the fingerprints in `lengths`; perplexity grows with the length."""
    loss = LEVEL[encoding] + 0.02 * seed + 0.001 * seed**2 * (encoding == "rope")
    results: dict[str, Any] = {"val/ppl": math.exp(loss), "scored/val/ppl": text, "data/train_tokens": 1000}
    for length, mark in lengths.items():
        results[f"extrapolation/tail_ppl@{length}"] = math.exp(loss) * (1 + length / 1000)
        results[f"scored/extrapolation/tail_ppl@{length}"] = mark
    return folder(root, config(f"pos_encoding={encoding}", *options, seed=seed), results)


def evaluation(
    path: Path, encoding: str, seed: int, lengths: Mapping[int, str], factor: float, setting: str = "yarn"
) -> None:
    loss = LEVEL[encoding] + 0.02 * seed + 0.001 * seed**2 * (encoding == "rope")
    changed = config(f"pos_encoding={encoding}", f"pos_encoding.scaling={setting}", *USUAL, seed=seed)
    changed["choices"]["evaluated"] = f"scaling={setting}"
    results: dict[str, Any] = {"val/ppl": math.exp(loss), "scored/val/ppl": "t"}
    for length, mark in lengths.items():
        results[f"extrapolation/tail_ppl@{length}"] = math.exp(loss) * (1 + length / 1000) * factor
        results[f"scored/extrapolation/tail_ppl@{length}"] = mark
    folder(path / "evaluations", changed, results)


def report(root: Path, out: Path, *words: str) -> dict[str, list[dict[str, str]]]:
    assert main([str(root), f"out={out}", "formats=[csv]", *words]) == 0
    return {file.stem: read_table(file) for file in out.glob("*.csv")}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two encodings of three seeds at short lengths, and rope once more with a scaling and the usual lengths."""
    root = tmp_path / "sweep"
    for encoding in LEVEL:
        for seed in (1, 2, 3):
            path = run(root, encoding, seed, SHORT, {64: "a", 128: "a"})
            if encoding == "rope":
                evaluation(path, encoding, seed, {128: "b", 256: "b"}, 1.01)
    return root


def test_evaluations_of_other_windows_are_in_a_table_of_their_own(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = report(sweep, tmp_path / "report", "baseline=pos_encoding=rope")
    lines = {line["group"]: line for line in tables["extrapolation-tail_ppl"]}
    assert {*lines} == {"alibi", "rope"}
    assert "extrapolation/tail_ppl@256 mean" not in lines["rope"]
    assert float(lines["alibi"]["extrapolation/tail_ppl@128 difference"]) == pytest.approx(
        math.expm1(0.1 - 0.014 / 3), rel=1e-9
    )
    (other,) = tables["extrapolation-tail_ppl-2"]
    assert other["group"] == "rope · evaluated scaling=yarn"
    assert other["extrapolation/tail_ppl@256 mean"]
    assert not any(name.endswith("difference") for name in other)
    assert len(tables["main"]) == 3  # val/ppl scored the same tokens
    assert "main-2" not in tables
    said = capsys.readouterr().out
    assert "eval.extrapolation.lengths" in said
    assert "tables of their own" in said


def test_an_evaluation_that_changes_nothing_changes_no_verdict(sweep: Path, tmp_path: Path) -> None:
    """Neither of runs as trained, nor of other evaluations."""
    lines = {}
    for case, factors in (("none", [1.1]), ("same", [1.1, 1.0]), ("rounded", [1.1, 1 + 1e-8])):
        root = tmp_path / case
        for encoding in LEVEL:
            for seed in (1, 2, 3):
                path = run(root, encoding, seed, USUAL, {64: "a"})
                for place, factor in enumerate(factors):
                    if encoding == "rope":
                        own = factor * (1 + 0.001 * seed**2 * (factor > 1.01)) + 1e-9 * seed * (
                            place == 1 and case == "rounded"
                        )
                        evaluation(path, encoding, seed, {64: "a"}, own, setting=("yarn", "ntk_aware")[place])
        tables = report(root, tmp_path / f"report-{case}", "baseline=pos_encoding=rope")
        lines[case] = {
            (line["group"], line["metric"]): (line["p corrected"], line["difference low"], line["verdict"])
            for line in [*tables["comparisons"], *tables["length-comparisons"]]
        }
    for case in ("same", "rounded"):
        assert {key: lines[case][key] for key in lines["none"]} == lines["none"]
        assert lines[case]["rope · evaluated scaling=ntk_aware", "extrapolation/tail_ppl@64"][2] == "zero spread"
    assert lines["none"]["rope · evaluated scaling=yarn", "extrapolation/tail_ppl@64"][2] == "worse"


def test_seeds_that_scored_other_tokens_are_not_averaged(tmp_path: Path) -> None:
    for encoding in LEVEL:
        for seed in (1, 2, 3, 4):
            mark = "other" if seed == 4 and encoding == "rope" else "usual"
            options = USUAL if mark == "other" else SHORT
            run(tmp_path / "runs", encoding, seed, options, {64: mark, 128: "both"})
    tables = report(tmp_path / "runs", tmp_path / "report", "baseline=rope", "verdict.least_seeds=4")
    rope = next(line for line in tables["extrapolation-tail_ppl"] if line["group"] == "rope")
    means = [math.exp(5 + 0.02 * seed + 0.001 * seed**2) * 1.064 for seed in (1, 2, 3, 4)]
    assert float(rope["extrapolation/tail_ppl@64 mean"]) == pytest.approx(sum(means[:3]) / 3)
    assert float(rope["extrapolation/tail_ppl@128 mean"]) == pytest.approx(sum(means) / 4 * 1.128 / 1.064)
    (other,) = tables["extrapolation-tail_ppl-2"]
    assert float(other["extrapolation/tail_ppl@64 mean"]) == pytest.approx(means[3])
    pairs = {line["metric"]: line["pairs"] for line in tables["length-comparisons"]}
    assert pairs == {"extrapolation/tail_ppl@64": "3", "extrapolation/tail_ppl@128": "4"}
    why = tables["length-comparisons"][0]["why"]
    assert why == "3 paired seeds, and the rule asks for 4; 1 more not measured on the same tokens in both groups"
    assert next(line for line in tables["main"] if line["group"] == "rope")["seeds"] == "4"


def test_another_validation_text_is_never_averaged_with_this_one(tmp_path: Path) -> None:
    """Two corpora with equal counts and one name: only the fingerprints tell them apart."""
    for seed in (1, 2, 3, 4):
        run(tmp_path / "runs", "rope", seed, USUAL, {}, text="one" if seed < 4 else "two")
    tables = report(tmp_path / "runs", tmp_path / "report", "metrics=[val/ppl,data/val_tokens]")
    assert len(tables["main"]) == len(tables["main-2"]) == 1
    assert float(tables["main-2"][0]["val/ppl mean"]) == pytest.approx(math.exp(5.096))
    mean = sum(math.exp(5 + 0.02 * seed + 0.001 * seed**2) for seed in (1, 2, 3)) / 3
    assert float(tables["main"][0]["val/ppl mean"]) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("metric", "mark"),
    [
        ("extrapolation/ppl@64", "own"),
        ("extrapolation/tail_ppl@64", "length"),
        ("extrapolation/tail_ppl@128", "evaluator"),
        ("passkey/accuracy@64", "passkey"),
        ("distance/accuracy@64", None),
        ("kv_cache/bytes_per_token", None),
    ],
)
def test_a_metric_has_the_fingerprint_of_the_longest_name_that_fits(metric: str, mark: str | None) -> None:
    scored = {"extrapolation": "evaluator", "extrapolation/64": "length", "extrapolation/ppl@64": "own",
              "passkey": "passkey", "passkey/128": "no"}  # fmt: skip
    assert fingerprint(scored, metric) == mark
