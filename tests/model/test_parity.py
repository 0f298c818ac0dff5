"""Logits and attention equal to transformers' implementations, weights copied across."""

import pytest
import torch

import newllm
from newllm.attention import Latent
from newllm.position import Alibi, Rope
from tests.support import hf_weights

VOCABULARY, LENGTH, HIDDEN, HEADS = 128, 64, 128, 4


def build(*overrides: str):
    sizes = [
        f"model.hidden_size={HIDDEN}",
        "model.num_layers=2",
        f"model.heads={HEADS}",
        f"model.vocab_size={VOCABULARY}",
    ]
    return newllm.build_model(newllm.compose([*sizes, *overrides])).eval()


def large_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Weights at which a wrong scale, pairing or norm shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def token_ids() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rotary_pct", [0.25, 0.5, 1.0])
@torch.no_grad()
def test_gpt_neox(rotary_pct: float):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=256, rotary_pct=rotary_pct, rotary_emb_base=5000,
        max_position_embeddings=LENGTH, attn_implementation="eager",
    )  # fmt: skip
    theirs = large_weights(GPTNeoXForCausalLM(config))
    ours = build("model=gpt_neox_70m", "model.mlp_size=256", f"rotary_pct={rotary_pct}", "theta=5000")
    ours.load_state_dict(hf_weights.gpt_neox(theirs.state_dict(), HEADS))
    expected = theirs(token_ids()).logits
    torch.testing.assert_close(ours(token_ids()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("attention", "kv_heads"), [("mha", HEADS), ("gqa", 2), ("gqa", 1)])
@torch.no_grad()
def test_llama(attention: str, kv_heads: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=256, num_key_value_heads=kv_heads, rms_norm_eps=1e-6,
        tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    theirs = large_weights(LlamaForCausalLM(config))
    groups = [f"kv_heads={kv_heads}"] if attention == "gqa" else []
    ours = build("model=llama_50m", "model.mlp_size=256", f"attention={attention}", *groups)
    weights = hf_weights.llama(theirs.state_dict())
    ours.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith("head")})
    expected = theirs(token_ids()).logits
    torch.testing.assert_close(ours(token_ids()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "kind:yarn_channels,factor:4"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
         "kind:llama3,factor:8"),
        ({"rope_type": "dynamic", "factor": 2.0}, "kind:dynamic_ntk_transformers,factor:2"),
    ],
)  # fmt: skip
@torch.no_grad()
def test_scaled_rope_in_a_whole_model(theirs: dict, ours: str):
    """Inputs of LENGTH tokens, of models trained at a quarter of that."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    trained = LENGTH // 4
    original = {} if theirs["rope_type"] == "dynamic" else {"original_max_position_embeddings": trained}
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=256, max_position_embeddings=trained, attn_implementation="eager",
        rope_parameters={"rope_theta": 5000.0, "partial_rotary_factor": 0.5, **theirs, **original},
    )  # fmt: skip
    reference = large_weights(GPTNeoXForCausalLM(config))
    model = build(
        "model=gpt_neox_70m", "model.mlp_size=256", "rotary_pct=0.5", "theta=5000", f"seq_len={trained}",
        f"pos_encoding.scaling={{{ours}}}",
    )  # fmt: skip
    model.load_state_dict(hf_weights.gpt_neox(reference.state_dict(), HEADS))
    model.position.adapt(LENGTH)
    expected = reference(token_ids()).logits
    torch.testing.assert_close(model(token_ids()), expected, atol=1e-5, rtol=1e-5)


def deepseek(version: int, rope_dim: int, query_dim: int | None):
    """transformers' MLA layer in double precision, with its own rotary embedding."""
    from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

    module, name = (v2, "DeepseekV2") if version == 2 else (v3, "DeepseekV3")
    config = getattr(module, f"{name}Config")(
        hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=HEADS, num_hidden_layers=1, kv_lora_rank=48,
        q_lora_rank=query_dim, qk_nope_head_dim=32, qk_rope_head_dim=rope_dim, v_head_dim=24, head_dim=rope_dim,
        first_k_dense_replace=1, attention_bias=False, max_position_embeddings=LENGTH, attn_implementation="eager",
    )  # fmt: skip
    attention = large_weights(getattr(module, f"{name}Attention")(config, 0)).double()
    rotary = getattr(module, f"{name}RotaryEmbedding")(config)
    return attention, rotary


def causal_mask() -> torch.Tensor:
    return torch.full((LENGTH, LENGTH), float("-inf"), dtype=torch.float64).triu(1)[None, None]


def absorbed(layer: Latent, x: torch.Tensor, encoding) -> torch.Tensor:
    """Token by token on the absorbed path."""
    from newllm.attention import LayerCache

    cache = LayerCache(LENGTH)
    steps = [layer(x[:, t : t + 1], torch.tensor([t]), encoding, cache) for t in range(LENGTH)]
    return torch.cat(steps, dim=1)


@pytest.mark.parametrize("query_dim", [None, 40])
@pytest.mark.parametrize("version", [2, 3])
@torch.no_grad()
def test_mla_equals_deepseek(version: int, query_dim: int | None):
    """V2 rotates complex (interleaved) pairs; V3 de-interleaves first: both are our interleaved layout."""
    theirs, rotary = deepseek(version, 16, query_dim)
    ours = Latent(
        48, 16, 24, query_dim, latent_norm=True, hidden_size=HIDDEN, heads=HEADS, head_dim=32, rotates=True
    ).double()
    ours.load_state_dict(hf_weights.deepseek_attention(theirs.state_dict()))
    encoding = Rope(layout="interleaved", head_dim=16, num_layers=1, seq_len=LENGTH)
    x = torch.randn(2, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    positions = torch.arange(LENGTH)
    expected = theirs(x, attention_mask=causal_mask(), position_embeddings=rotary(x, positions[None]))[0]
    torch.testing.assert_close(ours(x, positions, encoding), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(absorbed(ours, x, encoding), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["auto", "digits", "blocked", "plain"])
@torch.no_grad()
def test_mla_with_alibi_equals_deepseek(kernel):
    """Without a rotary key: theirs cannot have zero rotary dims, so two whose rows are zero; the scale makes up."""
    theirs, rotary = deepseek(2, 2, None)
    nope, scale = 32, ((32 + 2) / 32) ** 0.5
    weights = hf_weights.deepseek_attention(theirs.state_dict())
    theirs.q_proj.weight.unflatten(0, (HEADS, -1))[:, nope:] = 0
    theirs.q_proj.weight.mul_(scale)
    weights["q.weight"] = weights["q.weight"].unflatten(0, (HEADS, -1))[:, :nope].flatten(0, 1) / scale
    weights["kv_down.weight"] = weights["kv_down.weight"][:48]

    ours = Latent(
        48, 0, 24, latent_norm=True, kernel=kernel, hidden_size=HIDDEN, heads=HEADS, head_dim=nope, rotates=False
    )
    ours = ours.double()
    ours.load_state_dict(weights)
    encoding = Alibi(0.0625, heads=HEADS, num_layers=1)
    x = torch.randn(2, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    positions = torch.arange(LENGTH)
    mask = causal_mask() - 0.0625 * (positions[:, None] - positions[None, :])
    expected = theirs(x, attention_mask=mask, position_embeddings=rotary(x, positions[None]))[0]
    torch.testing.assert_close(ours(x, positions, encoding), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(absorbed(ours, x, encoding), expected, atol=2e-6, rtol=1e-5)
