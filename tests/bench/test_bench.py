"""The bench at a size where it takes seconds: what it writes, not how fast anything is."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

import newllm
from newllm.bench import main as bench
from newllm.bench.peer import peer
from newllm.bench.timing import alternate, ratio
from newllm.bench.train import main, measure
from newllm.errors import ConfigError

TINY = [
    "model=llama_50m", "model.hidden_size=32", "model.num_layers=1", "model.heads=2", "model.mlp_size=64",
    "model.vocab_size=512", "data.vocab_size=512", "batch_size=2", "seq_len=32", "samples=40",
]  # fmt: skip


def test_the_training_bench_writes_ratio_roofline_and_every_round(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "bench.json"
    assert main([*TINY, "runtime.threads=1", "rounds=2", "steps=1", "compiled=false", f"out={file}"]) == 0
    results = json.loads(file.read_text())
    assert results["peer"] == "LlamaForCausalLM"
    assert (results["rounds"], results["steps"], results["batch_size"], results["seq_len"]) == (2, 1, 2, 32)
    for contestant in ("newllm", "transformers_eager", "matmuls"):
        assert len(results[f"seconds/{contestant}"]) == 2
    ours, theirs = results["seconds/newllm"], results["seconds/transformers_eager"]
    of_rounds = [b / a for a, b in zip(ours, theirs, strict=True)]
    assert results["ratio/transformers_eager"] == pytest.approx(sum(of_rounds) / 2)  # the median of two
    assert results["ratio/transformers_eager/min"] == min(of_rounds)
    assert results["ratio/transformers_eager/max"] == max(of_rounds)
    assert results["roofline/share"] > 0
    assert not [name for name in results if "compiled" in name]
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM" in printed
    assert f"Written to {file}" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rounds=0", "rounds must be a whole number above 0, as in rounds=7; got 0"),
        ("steps=many", "steps must be a whole number above 0"),
        ("compiled=yes", "compiled must be true or false"),
        ("roundz=3", "roundz"),
        ("attention=mla", "transformers has a peer for pos_encoding=rope attention=mha only"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, word: str, message: str) -> None:
    file = tmp_path / "bench.json"
    with pytest.raises(ConfigError, match=message):
        main([*TINY, "compiled=false", f"out={file}", word])
    assert not file.exists()


def test_the_command_knows_its_benches(capsys: pytest.CaptureFixture) -> None:
    assert bench(["trian"]) == 2
    assert "'trian' is no bench" in capsys.readouterr().err
    assert bench([]) == 0
    assert "train" in capsys.readouterr().out


def test_every_contestant_has_its_calls_in_every_round_in_rotating_order() -> None:
    calls: list[str] = []
    names = ["a", "b", "c"]
    seconds = alternate({name: lambda name=name: calls.append(name) for name in names}, rounds=4, calls=2)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert calls[:3] == names  # the untimed round
    rounds = [calls[i : i + 6] for i in range(3, len(calls), 6)]
    assert len(rounds) == 4
    for played in rounds:
        assert Counter(played) == {"a": 2, "b": 2, "c": 2}
    assert [played[0] for played in rounds] == ["a", "b", "c", "a"]


def test_ratio_is_of_the_rounds_and_not_of_the_medians() -> None:
    found = ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0])
    assert found == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_the_peer_has_the_shape_of_our_model() -> None:
    for model, expected in (("pythia_70m", "GPTNeoXForCausalLM"), ("llama_50m", "LlamaForCausalLM")):
        words = [*TINY, f"model={model}"]
        cfg = newllm.compose(words)
        name, theirs = peer(cfg, 512)
        assert name == expected
        shapes = Counter(tuple(p.shape) for p in theirs.parameters() if p.dim() == 2)
        hidden, mlp = cfg.model.hidden_size, cfg.model.mlp_size
        assert shapes[512, hidden] == (1 if cfg.model.tied else 2)
        assert sum(math.prod(shape) for shape in shapes if mlp in shape) > 0


@pytest.mark.parametrize("word", ["pos_encoding=alibi", "attention=mla", "model.norm=layernorm"])
def test_the_peer_refuses_what_transformers_has_not(word: str) -> None:
    with pytest.raises(ConfigError, match="transformers has"):
        peer(newllm.compose([*TINY, word]), 512)


def test_a_machine_without_a_compiler_still_gets_its_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What torch.compile lacks leaves out that peer, with the reason, and nothing else."""

    def no_compiler(model):
        def call(**inputs):
            raise RuntimeError("no C++ compiler found\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    cfg = newllm.compose([*TINY, "runtime.threads=1", "facts=none"])
    results = measure(cfg, rounds=1, steps=1, compiled=True)
    assert "ratio/transformers_eager" in results
    assert "ratio/transformers_compiled" not in results
    assert "left out: no C++ compiler found\n" in capsys.readouterr().out
