"""Pieces of the report: numbers as words, files of tables, points of figures, the runs as JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from newllm.analysis.frame import load_runs
from newllm.analysis.settings import flatten
from newllm.report.figures import Series, short
from newllm.report.page import encode_runs, to_json
from newllm.report.tables import Cell, Table, percent, spread, to_csv, to_latex, to_markdown
from newllm.report.tradeoffs import pareto_front


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (148.321, 2.139, "148.3 ± 2.1"),
        (0.12345, 0.00012, "0.12345 ± 0.00012"),
        (70420480.0, 0.0, "70,420,480 ± 0"),
        (1234.5, 99.6, "1,234 ± 100"),
        (2.04e-7, 3.1e-8, "2.04e-07 ± 3.1e-08"),
        (2e90, 1e90, "2e+90 ± 1e+90"),
        (5.0, float("nan"), "5"),
        (float("nan"), 1.0, "\u2013"),
    ],
)
def test_a_mean_is_given_to_the_place_of_its_deviation(mean: float, std: float, text: str) -> None:
    assert spread(mean, std) == text


def test_relative_differences() -> None:
    assert [percent(x) for x in (0.0704, -0.0012, 0.0, 4e260)] == ["+7.0 %", "-0.12 %", "+0.00 %", "+4e+262 %"]


def test_numbers_on_axes() -> None:
    assert [short(x) for x in (0.25, 128, 1024, 65536, 5e5, 2e6)] == ["0.25", "128", "1024", "65.54k", "500k", "2M"]


TABLE = Table(
    "t",
    "A & B",
    [{"group": Cell("a|b_c", "a", {"group": "a|b_c"}),
      "val/ppl": Cell("1.0 ± 0.1", 1.0, {"mean": 1 / 3}, bold=True)},
     {"group": Cell("50 %", "b", {"group": "50 %"}), "val/ppl": Cell("2.0", 2.0, {"mean": 2.0})}],
    ["All of it."],
)  # fmt: skip


def test_csv_keeps_every_digit() -> None:
    assert to_csv(TABLE).splitlines() == ["group,mean", f"a|b_c,{1 / 3!r}", "50 %,2.0"]


def test_markdown_escapes_its_bars() -> None:
    assert to_markdown(TABLE).splitlines()[2:6] == [
        "| group  |       val/ppl |",
        "| ------ | ------------: |",
        r"| a\|b_c | **1.0 ± 0.1** |",
        "| 50 %   |           2.0 |",
    ]


def test_latex_escapes_its_commands() -> None:
    text = to_latex(TABLE)
    assert r"a\textbar{}b\_c & \textbf{1.0 $\pm$ 0.1} \\" in text
    assert r"50 \% & 2.0 \\" in text
    assert r"\caption{A \& B. All of it.}" in text
    assert r"\begin{tabular}{lr}" in text


def test_means_over_seeds_leave_out_missing_values() -> None:
    series = Series.over_seeds(0, "a", [{10: 1.0, 20: 2.0, 30: np.nan}, {10: 3.0, 30: np.inf}])
    assert series.x.tolist() == [10, 20]
    assert series.mean.tolist() == [2.0, 2.0]
    assert series.low[0] == pytest.approx(2 - np.sqrt(2))
    assert np.isnan(series.low[1])  # one seed has no deviation
    assert Series.over_seeds(0, "a", [{1: 2.0}, {1: 8.0}], log=True).mean.tolist() == pytest.approx([4.0])


def test_no_point_beats_one_on_the_pareto_front() -> None:
    cost, loss = np.array([1.0, 2, 2, 4, 8, 1]), np.array([9.0, 7, 8, 7, 5, np.nan])
    assert pareto_front(cost, loss) == [0, 1, 4]


def test_runs_come_back_from_their_json(sweep: Path, tmp_path: Path) -> None:
    frame = load_runs(sweep)
    metrics = ["val/ppl", "params/total"]
    data = json.loads(to_json(encode_runs(frame, frame["run"], metrics, sweep / "report" / "report.html")))
    assert data["count"] == len(frame)
    for row in range(len(frame)):
        config = dict(data["common"])
        for key, store in data["config"].items():
            if store["at"][row] >= 0:
                config[key] = store["values"][store["at"][row]]
        if frame["state"][row] != "unreadable":
            assert config == json.loads(json.dumps(flatten(frame["config"][row])))
        folder = data["folder"]["values"][data["folder"]["at"][row]]
        assert (sweep / "report" / folder / data["run"][row]).resolve() == Path(frame["path"][row]).resolve()
        ppl = data["metrics"]["val/ppl"][row]
        assert ppl == (pytest.approx(frame["val/ppl"][row], rel=1e-5) if frame["state"][row] == "done" else None)


def test_json_cannot_end_its_script_element() -> None:
    assert "</script>" not in to_json({"a": "</script>"})
    assert json.loads(to_json({"a": "</script>"})) == {"a": "</script>"}
