"""Weights of transformers' models under our names.

Each function maps a state dict to one that `load_state_dict` takes.
"""

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def gpt_neox(weights: Weights, heads: int) -> Weights:
    """GPTNeoXForCausalLM -> `gpt_neox_70m`'s kind of Transformer.

    GPT-NeoX interleaves its fused projection head by head, rows [H, (q k v), D]; ours are thirds, [(q k v), H, D].
    """
    names = {
        "gpt_neox.embed_in": "embed",
        "gpt_neox.final_layer_norm": "final_norm",
        "lm_head": "head",
        "embed_out": "head",
        "gpt_neox.layers": "blocks",
        "input_layernorm": "norm",
        "post_attention_layernorm": "mlp_norm",
        "attention.query_key_value": "attention.qkv",
        "attention.dense": "attention.out",
        "mlp.dense_h_to_4h": "mlp.up",
        "mlp.dense_4h_to_h": "mlp.down",
    }
    renamed = {_rename(name, names): weight for name, weight in weights.items()}
    for name, weight in renamed.items():
        if ".attention.qkv." in name:
            per_head = weight.unflatten(0, (heads, 3, -1))  # [H, 3, D, ...]
            renamed[name] = per_head.transpose(0, 1).flatten(0, 2)
    return renamed


def llama(weights: Weights) -> Weights:
    """LlamaForCausalLM -> `llama_50m`'s kind of Transformer: q, k, v become one matrix, gate and up another."""
    names = {
        "model.embed_tokens": "embed",
        "model.norm": "final_norm",
        "lm_head": "head",
        "model.layers": "blocks",
        "input_layernorm": "norm",
        "post_attention_layernorm": "mlp_norm",
        "self_attn.o_proj": "attention.out",
        "mlp.down_proj": "mlp.down",
    }
    renamed = {_rename(name, names): weight for name, weight in weights.items()}
    for name in [name for name in renamed if name.endswith("self_attn.q_proj.weight")]:
        block = name.removesuffix("self_attn.q_proj.weight")
        qkv = [renamed.pop(f"{block}self_attn.{part}_proj.weight") for part in "qkv"]
        renamed[f"{block}attention.qkv.weight"] = torch.cat(qkv)
        gate_up = [renamed.pop(f"{block}mlp.{part}_proj.weight") for part in ("gate", "up")]
        renamed[f"{block}mlp.gate_up.weight"] = torch.cat(gate_up)
    return renamed


def deepseek_attention(weights: Weights) -> Weights:
    """DeepseekV2Attention or DeepseekV3Attention (no attention biases) -> `newllm.attention.Latent`."""
    low_rank = "q_a_proj.weight" in weights
    names = {
        "q_proj": "q",
        "q_a_proj": "q.0",
        "q_a_layernorm": "q.1.norm",
        "q_b_proj": "q.2",
        "kv_a_proj_with_mqa": "kv_down",
        "kv_a_layernorm": "latent_norm.norm",
        "kv_b_proj": "kv_up",
        "o_proj": "out",
    }
    if low_rank:
        del names["q_proj"]
    return {_rename(name, names): weight for name, weight in weights.items()}


def _rename(name: str, names: dict[str, str]) -> str:
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name
