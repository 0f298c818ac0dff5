"""The bench of attention kernels."""

import json
from pathlib import Path

import pytest
import torch

from newllm.bench import main
from newllm.bench.attention import _kernels


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


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_torchs_flex_attention_computes_what_our_kernels_compute() -> None:
    kernels, _, _ = _kernels(torch.device("cpu"), torch.float32, (1, 2, 16, 8), 8, flex=True)
    for _, inputs in kernels.values():
        for tensor in inputs:
            tensor.requires_grad_(False)  # a GPU alone has the backward pass
    table = kernels["learned"][1][-1]
    table.copy_(torch.arange(table.numel()).view_as(table) / table.numel())
    for theirs, ours in (("flex", "none"), ("flex_alibi", "alibi_heads"), ("flex_learned", "learned")):
        torch.testing.assert_close(kernels[theirs][0](), kernels[ours][0]())
