"""Published sizes, shapes of the model, and what its constructor refuses."""

import pytest
import torch

import newllm
from newllm.errors import ConfigError


def parameters(*overrides: str) -> int:
    with torch.device("meta"):
        model = newllm.build_model(newllm.compose(list(overrides)))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("pos_encoding", ["rope", "alibi", "nope"])
def test_pythia_70m_as_published(pos_encoding):
    assert parameters("model=pythia_70m", f"pos_encoding={pos_encoding}") == 70_420_480


def test_other_published_sizes():
    assert parameters("model=pythia_70m", "pos_encoding=alibi", "attention=mla", "kv_dim=128") == 68_442_112
    assert parameters("model=gpt_neox_70m", "rotary_pct=0.25") == 70_426_624
    assert parameters("model=llama_50m", "theta=5e5") == 50_928_128


def test_initial_weights(small_model):
    """N(0, std^2) for matrices and embeddings, zero biases, norms of one; the seed decides, and nothing else does."""
    sizes = ["model.hidden_size=128", "model.num_layers=2", "model.vocab_size=4096", "model=pythia_70m"]
    models = [newllm.build_model(newllm.compose([*sizes, f"seed={seed}"])) for seed in (1, 1, 2)]
    first, again, other = (dict(model.named_parameters()) for model in models)
    assert first["embed.weight"].std().item() == pytest.approx(0.02, rel=0.01)
    assert first["blocks.1.mlp.up.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert not first["blocks.0.attention.qkv.bias"].any()
    assert (first["final_norm.weight"] == 1).all()
    assert not torch.equal(first["blocks.0.mlp.up.weight"], first["blocks.1.mlp.up.weight"])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_cache_counts_what_it_holds(small_model):
    """16 values of rotary key + 32 of latent against 2 x 4 heads x 16, in 3 layers of fp32, whatever was set aside."""
    ids = torch.zeros(1, 10, dtype=torch.long)
    for attention, values in (("mha", 2 * 4 * 16), ("mla", 32 + 16)):
        model = small_model("rope", attention, *(["kv_dim=32"] if attention == "mla" else []))
        cache = model.new_cache(1, 1000)
        model(ids, cache=cache)
        assert cache.nbytes == 10 * values * 3 * 4
        assert cache.bytes_per_token == values * 3 * 4


def test_cache_refuses_more_than_its_capacity(small_model):
    model = small_model("rope", "mha")
    with pytest.raises(ConfigError, match="room for 4 tokens and 5 are needed"):
        model(torch.zeros(1, 5, dtype=torch.long), cache=model.new_cache(1, 4))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.heads=3"], "model.hidden_size=128 is not divisible by model.heads=3; try model.heads=2"),
        (["model.heads=0"], r"model.heads must lie in \[1, 1e\+06\], as in model.heads=4; got 0"),
        (["model.hidden_size=-8"], r"model.hidden_size must lie in \[1, "),
        (["model.init_std=-1"], "model.init_std must be 0 or greater, as in model.init_std=0.02; got -1"),
        (["model.norm_eps=-1"], "model.norm_eps must be 0 or greater, as in model.norm_eps=1e-05; got -1"),
        (["attention=mla", "kv_dim=0"], r"kv_dim must lie in \[1, "),
        (["attention=mla", "rope_dim=0"], "rope_dim must be even and greater than 0"),
        (["attention=gqa", "kv_heads=3"], r"kv_heads must divide the 4 heads: one of \[1, 2, 4\]; got 3"),
        (["model.vocab_size=100", "data.vocab_size=300"], "the tokenizer has 300 ids and the model's vocabulary 100"),
    ],
)
def test_refusals(overrides, message):
    """Each before any weight is drawn, in one sentence that says what to type."""
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        newllm.build_model(newllm.compose(overrides), tokens=300)
