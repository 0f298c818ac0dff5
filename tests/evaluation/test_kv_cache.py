import pytest

import newllm
from newllm.evaluation.kv_cache import KVCache
from tests.support.evaluation_subject import make_subject


@pytest.mark.parametrize(
    ("encoding", "attention", "numbers"),
    [
        ("rope", "mha", 2 * 64),
        ("rope", "gqa", 2 * 16),
        ("alibi", "mla", 16),  # the latent alone: nothing rotates
        ("rope", "mla", 16 + 8),  # and the rotary key
    ],
)
def test_bytes_count_the_cached_numbers(encoding, attention, numbers):
    metrics = KVCache(tokens=9)(make_subject(encoding, attention)).metrics
    assert metrics["kv_cache/bytes_per_token"] == 2 * 4 * numbers  # two layers of fp32
    assert metrics["kv_cache/mha_bytes_per_token"] == 2 * 4 * 128
    assert metrics["kv_cache/reduction"] == 1 - numbers / 128
    assert metrics["kv_cache/max_logit_error"] < 1e-5


def test_a_wrong_cache_shows_in_the_logit_error(subject):
    original = subject.model.blocks[1].attention.forward

    def forgetful(x, positions, encoding=None, cache=None):
        return original(x, positions * 0 if cache is not None else positions, encoding, cache)

    subject.model.blocks[1].attention.forward = forgetful
    assert KVCache(tokens=9)(subject).metrics["kv_cache/max_logit_error"] > 1e-3


@pytest.mark.parametrize(("kv_dim", "reduction"), [(64, 0.9375), (128, 0.875), (256, 0.75)])
def test_the_published_reductions_are_measured(subject, kv_dim, reduction):
    """On the published shape, cut to one layer and to the bytes' vocabulary: neither enters the ratio."""
    overrides = ["model=pythia_70m", "attention=mla", "pos_encoding=alibi", f"kv_dim={kv_dim}"]
    cfg = newllm.compose([*overrides, "model.num_layers=1", "model.vocab_size=320"])
    subject.config, subject.model = cfg, newllm.build_model(cfg)
    assert KVCache(tokens=8)(subject).metrics["kv_cache/reduction"] == reduction


@pytest.mark.parametrize(("name", "width", "reduction"), [("dproj_pythia", 320, 0.375), ("dproj_pythia_256", 256, 0.5)])
def test_narrow_states_are_compared_with_attention_as_wide_as_the_embeddings(subject, name, width, reduction):
    """What a recurrence carries is of one size, and no part of a token's bytes."""
    cfg = newllm.compose([f"model={name}", "rotary_pct=0.25", "model.num_layers=1", "model.vocab_size=320"])
    subject.config, subject.model = cfg, newllm.build_model(cfg)
    findings = KVCache(tokens=8)(subject)
    assert findings.metrics["kv_cache/bytes_per_token"] == 2 * width * 4
    assert findings.metrics["kv_cache/mha_bytes_per_token"] == 2 * 512 * 4
    assert findings.metrics["kv_cache/reduction"] == reduction
    assert findings.metrics["kv_cache/state_bytes"] == width * 4
    assert findings.metrics["kv_cache/max_logit_error"] < 1e-4
    assert "as wide as the embedding (512)" in str(findings.body)
