"""The benches of decoding and of evaluation, end to end on a tiny model."""

import pytest

from newllm.bench import measure

SMALL = ["model=tiny", "model.hidden_size=64", "model.heads=2", "model.num_layers=1", "model.mlp_size=64"]


def test_decoding_fills_the_cache_and_counts_its_bytes():
    words = ["contexts=24,40", "rounds=1", "tokens=1", "kv_dim=32", "precision=fp32", "model.vocab_size=128"]
    result = measure("decode", [*SMALL, *words])
    metrics = result.metrics
    for name in ("mha", "mha_alibi", "transformers"):
        assert metrics[f"cache/bytes/{name}/40"] == 40 * 2 * 64 * 4
    assert metrics["cache/bytes/mla/24"] == 24 * 32 * 4
    assert metrics["cache/ratio"] == 4
    for context in (24, 40):
        ratio = metrics[f"seconds/mha/{context}"][0] / metrics[f"seconds/mla/{context}"][0]
        assert metrics[f"ratio/mla_over_mha/{context}"] == pytest.approx(ratio)
        assert metrics[f"decode/tokens_per_second/mla/{context}"] == pytest.approx(
            1 / metrics[f"seconds/mla/{context}"][0]
        )
    assert [len(rows) for _, _, rows in result.tables] == [2, 2, 2]


def test_evaluation_gives_the_numbers_of_plain_code_with_less_memory():
    words = ["data.vocab_size=512", "model.vocab_size=8192", "length=1024", "rounds=1", "precision=fp32"]
    metrics = measure("evaluate", [*SMALL, *words]).metrics
    assert 0 < metrics["difference/long"] < 1e-5
    assert 0 < metrics["difference/reversal"] < 1e-5
    assert metrics["long/peak_bytes/newllm"] < metrics["long/peak_bytes/all_logits"]
    assert metrics["ratio/reversal"] > 0
    for name in ("rope", "alibi"):
        assert metrics[f"ratio/{name}"] == metrics[f"seconds/{name}/encoding"][0] / metrics["seconds/nope/encoding"][0]
    steps = [metrics[f"memory/peak_bytes@{tokens}"] for tokens in (256, 512, 1024)]
    assert steps[2] - steps[1] == pytest.approx(2 * (steps[1] - steps[0]), rel=0.05)  # linear
