"""The training bench at a size where it takes seconds: what it writes, not how fast anything is."""

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

import newllm
from newllm.bench import main, measure, train_step
from newllm.bench.hf_reference import peer, peer_name
from newllm.errors import ConfigError

TINY = [
    "model=llama_50m", "model.hidden_size=32", "model.num_layers=1", "model.heads=2", "model.mlp_size=64",
    "model.vocab_size=512", "data.vocab_size=512", "batch_size=2", "seq_len=32", "samples=40", "runtime.threads=1",
]  # fmt: skip


def test_ratios_the_roofline_and_every_round_are_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "bench.json"
    assert main(["train", *TINY, "precision=fp32", "rounds=2", "steps=1", "compiled=false", f"out={file}"]) == 0
    results = json.loads(file.read_text())
    assert results["peer"] == "LlamaForCausalLM"
    assert (results["rounds"], results["steps"], results["batch_size"], results["seq_len"]) == (2, 1, 2, 32)
    for contestant in ("newllm", "transformers_eager", "matmuls"):
        assert len(results[f"seconds/{contestant}"]) == 2
    ours, theirs = results["seconds/newllm"], results["seconds/transformers_eager"]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    assert results["ratio/transformers_eager"] == pytest.approx(sum(ratios) / 2)  # the median of two
    assert results["ratio/transformers_eager/min"] == min(ratios)
    assert results["ratio/transformers_eager/max"] == max(ratios)
    assert results["roofline/share"] > 0
    assert not [name for name in results if "compiled" in name]
    assert "ratio/transformers_eager_fp32" not in results  # eager is in fp32 already
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM" in printed
    assert f"Written to {file}" in printed


def test_without_a_compiler_only_the_compiled_contestants_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = ["newllm_compiled", "transformers_compiled"]
    names = {"newllm", "transformers_eager", "transformers_eager_fp32", "matmuls", *compiled}
    assert train_step._contestants(TINY, "bf16", compiled=True).keys() == names
    assert train_step.LABELS.keys() == names | train_step._variants(TINY).keys()
    idle, broken = partial(partial, int), partial(int, "no compiler")  # one builds a contestant, the other raises
    quick = {name: broken if name in compiled else idle for name in sorted(names)}  # newllm before transformers
    monkeypatch.setattr(train_step, "_contestants", lambda *_: quick)
    result = measure("train", [*TINY, "facts=none", "rounds=1", "steps=1"])
    assert {"ratio/transformers_eager", "ratio/transformers_eager_fp32"} <= result.metrics.keys()
    assert not [name for name in result.metrics if "compiled" in name]
    for note, library in zip(result.notes[1:3], ("newllm", "transformers"), strict=True):
        assert note.startswith(f"{library}, torch.compile, is left out: {library}_compiled failed: invalid literal")


def test_memory_of_a_step_is_less_than_with_all_logits_in_fp32() -> None:
    metrics = measure("train", [*TINY, "model.vocab_size=8192", "seq_len=512", "facts=none", "memory=true"]).metrics
    logits = 2 * 512 * 8192 * 4
    assert metrics["memory/plain_bytes"] - metrics["memory/peak_bytes"] > logits
    assert metrics["memory/peak_bytes"] > metrics["memory/held_bytes"]
    assert metrics["ratio/memory"] == metrics["memory/plain_bytes"] / metrics["memory/peak_bytes"]


def test_a_mistyped_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="roundz"):
        measure("train", [*TINY, "roundz=3"])


def test_transformers_model_has_the_shape_of_ours() -> None:
    for model, expected in (("pythia_70m", "GPTNeoXForCausalLM"), ("llama_50m", "LlamaForCausalLM")):
        cfg = newllm.compose([*TINY, f"model={model}"])
        reference = peer(cfg, 512)
        assert type(reference).__name__ == peer_name(cfg) == expected
        shapes = Counter(tuple(p.shape) for p in reference.parameters() if p.dim() == 2)
        hidden, mlp = cfg.model.hidden_size, cfg.model.mlp_size
        assert shapes[512, hidden] == (1 if cfg.model.tied else 2)
        assert sum(math.prod(shape) for shape in shapes if mlp in shape) > 0


@pytest.mark.parametrize("word", ["pos_encoding=alibi", "attention=mla", "model.norm=layernorm", "rotary_pct=0.5"])
def test_models_without_a_peer_in_transformers_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="transformers"):
        measure("train", [*TINY, word])


def test_pythia_rotates_a_quarter_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    encodings = []
    monkeypatch.setattr(train_step, "_step_memory", lambda cfg: encodings.append(cfg.pos_encoding))
    for words in ([], ["rotary_pct=0.5"], ["pos_encoding=alibi"], ["model=llama_50m"]):
        measure("train", ["memory=true", *words])
    assert [node.get("rotary_pct") for node in encodings] == [0.25, 0.5, None, 1.0]
