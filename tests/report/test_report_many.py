"""Ten thousand runs."""

import json
import re
from pathlib import Path

import pytest

from newllm.report.__main__ import main
from tests.support.report_runs import grid, make_runs, read_table

SEEDS = range(278)


@pytest.mark.slow
def test_ten_thousand_runs_fit_into_one_page(tmp_path: Path) -> None:
    axes = {"pos_encoding": ["rope"], "attention": ["mha", "gqa", "mla"], "theta": [1e3, 1e4, 1e5, 1e6]}
    runs = make_runs(tmp_path / "runs", grid(**axes, samples=[600, 1200, 2400]), seeds=SEEDS)
    assert len(runs) > 10_000
    assert main([str(tmp_path / "runs"), f"out={tmp_path}"]) == 0
    page = tmp_path / "report.html"
    assert page.stat().st_size < 15_000_000
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])  # type: ignore[index]
    assert len(data["run"]) == data["count"] == len(runs)
    groups = read_table(tmp_path / "main.csv")
    assert len(groups) == 36
    assert {int(group["seeds"]) for group in groups} == {len(SEEDS)}
