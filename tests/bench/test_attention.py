"""The bench of attention kernels."""

import json
from pathlib import Path

import pytest

from newllm.bench import main


def test_kernels_and_their_memory_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "attention.json"
    words = ["lengths=32,256", "rounds=2", "batch=1", "heads=2", "width=16", "rotary=8"]
    assert main(["attention", *words, f"out={out}"]) == 0
    results = json.loads(out.read_text())
    seconds, plain = results["seconds/alibi/fp32/32"], results["seconds/causal/fp32/32"]
    ratios = [b / a for a, b in zip(seconds, plain, strict=True)]
    assert results["ratio/causal/alibi/fp32/32"] == pytest.approx(sum(ratios) / 2)
    memory = {name: results[f"temporary_bytes/{name}/fp32/256"] for name in ("causal", "alibi", "alibi_heads", "mask")}
    assert memory["alibi"] < 1.25 * memory["causal"]
    assert memory["alibi_heads"] < 1.25 * memory["causal"]
    assert memory["mask"] > 2 * 256 * 256 * 4
    printed = capsys.readouterr().out.splitlines()
    assert any("newllm, ALiBi, slope per head" in line for line in printed)
    assert max(map(len, printed)) <= 100 or "Written" in max(printed, key=len)
