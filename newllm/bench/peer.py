"""transformers' model of the same shape as a configuration of ours."""

from omegaconf import DictConfig
from torch import nn

from newllm.errors import ConfigError


def peer(cfg: DictConfig, vocab_size: int) -> tuple[str, nn.Module]:
    """(name, model): GPTNeoXForCausalLM for parallel blocks, LlamaForCausalLM for the Llama kind; RoPE and mha only."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    model, choices = cfg.model, cfg.choices
    if choices.pos_encoding != "rope" or choices.attention != "mha":
        raise ConfigError("transformers has a peer for pos_encoding=rope attention=mha only; leave these as they are.")
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
    if model.residual != "sequential" and model.mlp == "gelu" and model.norm == "layernorm":
        rope = {"rotary_pct": cfg.pos_encoding.rotary_pct, "rotary_emb_base": cfg.pos_encoding.theta}
        config = GPTNeoXConfig(**sizes, **rope, attention_dropout=0.0, hidden_dropout=0.0)
        return "GPTNeoXForCausalLM", GPTNeoXForCausalLM(config)
    if model.residual == "sequential" and model.mlp == "swiglu" and model.norm == "rmsnorm" and not model.bias:
        return "LlamaForCausalLM", LlamaForCausalLM(LlamaConfig(**sizes, rms_norm_eps=model.norm_eps))
    raise ConfigError("transformers has no model of this shape; try model=pythia_70m or model=llama_50m.")
