"""transformers' model of the same shape as a configuration of ours."""

from omegaconf import DictConfig
from torch import nn

from newllm.errors import ConfigError


def peer_name(cfg: DictConfig) -> str:
    """GPTNeoXForCausalLM for parallel blocks, LlamaForCausalLM for Llama's; with RoPE and MHA only.

    Raises ConfigError if transformers has no such model.
    """
    model, choices = cfg.model, cfg.choices
    if choices.pos_encoding != "rope" or choices.attention != "mha":
        raise ConfigError("transformers has a peer for pos_encoding=rope attention=mha only; leave these as they are.")
    if model.get("head_dim") or cfg.attention.qk_norm or cfg.attention.bias != model.bias:
        raise ConfigError("the peers have plain attention; leave model.head_dim and the options of attention out.")
    if model.residual != "sequential" and model.mlp == "gelu" and model.norm == "layernorm":
        return "GPTNeoXForCausalLM"
    if cfg.pos_encoding.rotary_pct != 1:
        raise ConfigError("transformers' Llama rotates all dims of a head; leave out rotary_pct.")
    if model.residual == "sequential" and model.mlp == "swiglu" and model.norm == "rmsnorm" and not model.bias:
        return "LlamaForCausalLM"
    raise ConfigError("transformers has no model of this shape; try model=pythia_70m or model=llama_50m.")


def peer(cfg: DictConfig, vocab_size: int) -> nn.Module:
    """The model that `peer_name` names, with new weights."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    model, encoding = cfg.model, cfg.pos_encoding
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_size,
        "max_position_embeddings": cfg.data.seq_len,
        "tie_word_embeddings": model.tied,
        "use_cache": False,
    }
    if peer_name(cfg) == "LlamaForCausalLM":
        rope = {"rope_theta": encoding.theta}
        return LlamaForCausalLM(LlamaConfig(**sizes, **rope, rms_norm_eps=model.norm_eps))
    rope = {"rotary_pct": encoding.rotary_pct, "rotary_emb_base": encoding.theta}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **rope, attention_dropout=0.0, hidden_dropout=0.0))
