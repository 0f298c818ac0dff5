"""`newllm compare`: what differs in two runs or folders of runs, side by side."""

import json
from pathlib import Path
from typing import Any

import pytest

from newllm import cli
from tests.support.run_folders import config, folder

LENGTHS = ["eval=[loss,extrapolation]", "eval.extrapolation.lengths=[64,128]"]


def run(root: Path, *overrides: str, seed: int = 1, state: str = "done", **results: Any) -> Path:
    found = {name.replace("__", "/"): value for name, value in results.items()}
    path = folder(root, config(*overrides, seed=seed), found if state == "done" else None, state)
    environment = {"device": "cpu", "threads": 1, "packages": {"torch": "2.0" if root.name == "there" else "1.0"}}
    (path / "environment.json").write_text(json.dumps(environment))
    return path


def table(out: str) -> dict[str, list[str]]:
    """First word of each line -> the cells of the line."""
    rows = [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in out.splitlines()]
    return {row[0]: row for row in rows if row}


def test_two_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run(tmp_path / "here", "pos_encoding=rope", *LENGTHS, val__ppl=100.0, params__total=5,
            **{"extrapolation/ppl@64": 90.0, "scored/extrapolation": "a"})  # fmt: skip
    b = run(tmp_path / "there", "pos_encoding=alibi", *LENGTHS[:1], val__ppl=107.0, params__total=5,
            **{"extrapolation/ppl@64": 80.0, "scored/extrapolation": "b"})  # fmt: skip
    assert cli.main(["compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    rows = table(out)
    assert rows["pos_encoding"][1:] == ["rope", "alibi"]
    assert rows["eval.extrapolation.lengths"][1:] == ["[64,128]", "[1x,2x,4x,8x]"]
    assert rows["torch"][1:] == ["1.0", "2.0"]
    assert "theta" not in rows
    assert rows["val/ppl"][1:] == ["100", "107", "+7.0 %"]
    assert rows["params/total"][1:] == ["5", "5", "equal"]
    assert rows["extrapolation/ppl@64"][1:] == ["90", "80", "other tokens"]
    assert "scored other tokens than A: extrapolation/ppl@64" in out
    assert "verdict" not in out
    (b / "environment.json").unlink()
    assert cli.main(["compare", str(a), str(b)]) == 0
    assert table(capsys.readouterr().out)["torch"][1:] == ["1.0", "environment.json is missing"]


def test_folders_are_paired_by_configuration_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for attention, cost in (("mha", 1.0), ("mla", 1.1)):
        for seed in (1, 2, 3):
            noise = 1 + 0.01 * seed
            run(tmp_path / "here", f"attention={attention}", seed=seed, val__ppl=100 * cost * noise, val__loss=4.0)
            more = 100 * cost * noise * (1.2 + 0.001 * seed)
            there = {"val__ppl": more, "val__loss": 4.3 if seed == 3 else 3.9}
            run(tmp_path / "there", "pos_encoding=alibi", f"attention={attention}", seed=seed, **there)
            run(tmp_path / "again", f"attention={attention}", seed=seed, val__ppl=100 * cost * noise)
    here, there, again = (str(tmp_path / name) for name in ("here", "there", "again"))
    assert cli.main(["compare", here, there, "metrics=val/ppl"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "+20.2 %" in line]
    assert cli.main(["compare", here, there, "metrics=val/loss"]) == 0
    assert capsys.readouterr().out.count("inconclusive (needs ") == 2
    assert ["mha" in line for line in lines] == [True, False]
    assert all("worse" in line for line in lines)
    assert cli.main(["compare", here, again]) == 0
    out = capsys.readouterr().out
    assert "No setting that may change a number differs" in out
    assert [line.split()[-2:] for line in out.splitlines() if "val/ppl" in line] == [["zero", "spread"]] * 2
    assert "worse" not in out


def test_survivors_do_not_win_and_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that failed in one folder and finished in the other is missing in the first."""
    for seed in (1, 2, 3, 4):
        run(tmp_path / "here", seed=seed, val__ppl=100.0 + seed, val__loss=4.6)
        state = "failed" if seed == 2 else "done"
        run(tmp_path / "there", seed=seed, state=state, val__ppl=90.0 + seed**2, val__loss=4.5)
    run(tmp_path / "there", "pos_encoding=nope", val__ppl=1.0)
    assert cli.main(["compare", str(tmp_path / "here"), str(tmp_path / "there"), "metrics=val/ppl,val/loss"]) == 0
    out = capsys.readouterr().out
    rows = table(out)
    assert rows["val/ppl"][-1] == rows["val/loss"][-1] == "1 of 4 seeds failed"
    assert "nan" not in out
    assert "Only in B: nope." in out
    assert "Without results in B: 1 failed." in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{done}"], "expected two runs or folders of runs, not 1"),
        (["{done}", "{done}", "{done}"], "not 3"),
        (["{done}", "{waits}"], "no finished run (1 queued)"),
        (["{done}", "{tmp}/nowhere"], "nowhere"),
        (["{done}", "{done}", "metrics=[val/pl,]"], "did you mean val/ppl"),
        (["{done}", "{done}", "metrics=[val/ppl,val/loss]"], "no finished run has a finite val/loss"),
        (["{done}", "{done}", "metric=val/ppl"], "expected metrics=NAME"),
        (["{done}", "{done}", "--metrics"], "--help"),
    ],
)
def test_bad_input_gets_a_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {
        "done": run(tmp_path / "a", val__ppl=100.0, val__loss=None),
        "waits": run(tmp_path / "b", state="queued"),
        "tmp": tmp_path,
    }
    assert cli.main(["compare", *(word.format(**paths) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
