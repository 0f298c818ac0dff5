"""The bench of the token store."""

from pathlib import Path

import pytest

from newllm.bench import data
from newllm.errors import NewllmError


def test_newllm_alone_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "VOCAB_SIZE", 300)
    result = data.measure([], sizes=(1,), rounds=1, peer=False, tokenizer=None)
    assert len(result.metrics["seconds/newllm/1mb"]) == 1
    assert min(result.metrics["seconds/newllm/1mb"]) > 0
    if Path("/proc/self/smaps_rollup").exists():
        assert result.metrics["peak_bytes/newllm/1mb"] > 10_000_000
    assert not [key for key in result.metrics if key.startswith("ratio/")]
    [(_, columns, [row])] = result.tables
    assert len(columns) == len(row)


def test_ratios_compare_text_to_tokens_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = {
        "newllm": {"build": 2.0, "total": 2.0, "peak": 100},
        "datasets": {"load": 1.0, "map": 7.0, "rows": 4.0, "total": 12.0, "peak": 900},
    }
    monkeypatch.setattr(data, "_run", lambda name, *_: turns[name])
    metrics = data.measure([], sizes=(1, 2), rounds=3, peer=True, tokenizer="any").metrics
    assert metrics["ratio/datasets_map"] == metrics["ratio/datasets_map/2mb"] == 4.0
    assert metrics["ratio/datasets_rows"] == metrics["ratio/datasets_rows/1mb/max"] == 6.0
    assert metrics["mb_per_second/newllm/2mb"] == 1.0
    assert metrics["peak_bytes/datasets/1mb"] == 900


def test_a_contestant_that_fails_gives_the_reason(tmp_path: Path) -> None:
    tokenizer = str(tmp_path / "no_tokenizer")
    with pytest.raises(NewllmError, match="no_tokenizer"):
        data._run("newllm", tmp_path / "text.jsonl", tokenizer, str(tmp_path))
