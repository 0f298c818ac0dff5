"""The families of released models that are a `Transformer`: their config.json as overrides, and where weights are.

Whatever else a family's code in transformers can do is refused with the name of the field.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from newllm.checks import MOST_LAYERS
from newllm.config.values import shown
from newllm.errors import ConfigError

_TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # three codes of one formula
_SILU = ("silu", "swish")
_REQUIRED = object()


@dataclass(frozen=True)
class Source:
    """Where a parameter is in a checkpoint.

    parts: name -> shape of the tensors that are joined along their rows. arrange: turns the result into our parameter.
    """

    parts: Mapping[str, tuple[int, ...]]
    arrange: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Translation:
    """How a checkpoint becomes one of our models.

    overrides: of the configuration. sources: name of each parameter but the head -> where it is. base: prefix of the
    checkpoint's names, which may be missing. ignored: names of tensors that hold constants.
    """

    overrides: list[str]
    sources: dict[str, Source]
    base: str
    ignored: re.Pattern[str]


class Fields:
    """The fields of a config.json. Every method raises ConfigError, naming the field."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name, self.values = name, values

    def get(self, field: str, default: Any = _REQUIRED) -> Any:
        """The value of a field; the default if it is missing or null."""
        value = self.values.get(field)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.refusal(field, "is missing")
        return default

    def size(self, field: str, default: Any = _REQUIRED) -> int:
        """A whole number above 0."""
        value = self.get(field, default)
        if type(value) is not int or value < 1:
            raise self.refusal(field, "must be a whole number above 0")
        return value

    def layers(self, field: str) -> range:
        """The numbers of the layers."""
        count = self.size(field)
        if count > MOST_LAYERS:
            raise self.refusal(field, f"must be at most {MOST_LAYERS:,}")
        return range(count)

    def flag(self, field: str, default: bool) -> bool:
        value = self.get(field, default)
        if type(value) is not bool:
            raise self.refusal(field, "must be true or false")
        return value

    def number(self, field: str, default: Any = _REQUIRED) -> float:
        value = self.get(field, default)
        if type(value) not in (int, float):
            raise self.refusal(field, "must be a number")
        return float(value)

    def require(self, field: str, *accepted: Any) -> None:
        """Refuse any other value; a missing or null field is accepted."""
        if self.values.get(field) is not None and self.values[field] not in accepted:
            raise self.refusal(field, f"is not supported (only {' or '.join(map(shown, accepted))})")

    def refusal(self, field: str, why: str) -> ConfigError:
        given = f"={shown(self.values[field])}" if field in self.values else ""
        return ConfigError(f"{self.name} does not fit newllm's transformer: {field}{given} in its config.json {why}.")


def translate(name: str, config: Mapping[str, Any]) -> Translation:
    """The translation of a checkpoint with this config.json. Raises ConfigError for what our model cannot compute."""
    fields = Fields(name, config)
    family = str(fields.get("model_type"))
    if family not in FAMILIES:
        raise fields.refusal("model_type", f"is not among {', '.join(FAMILIES)}")
    for field, why in {
        "auto_map": "asks for code of its own, which is never run",
        "quantization_config": "has quantized weights; take the ones before quantization",
    }.items():
        if config.get(field):
            raise ConfigError(f"{name} does not fit newllm's transformer: {field} in its config.json {why}.")
    fields.require("use_sliding_window", False)
    kinds = fields.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise fields.refusal("layer_types", "has layers without full attention")
    return FAMILIES[family](fields)


# --- families -------------------------------------------------------------------------------------------------------


def _gpt_neox(fields: Fields) -> Translation:
    """GPTNeoXForCausalLM: Pythia. Its fused projection goes head by head, rows [H, (q k v), D]; ours are thirds."""
    width, heads, inner = (fields.size(f) for f in ("hidden_size", "num_attention_heads", "intermediate_size"))
    bias = fields.flag("attention_bias", True)
    parallel = fields.flag("use_parallel_residual", True)
    overrides = [
        *_sizes(fields, width, heads, inner, "num_hidden_layers", "max_position_embeddings"),
        *_layers(norm="layernorm", eps=fields.number("layer_norm_eps", 1e-5), bias=True),
        f"model.mlp={_gelu(fields, 'hidden_act', 'gelu')}",
        f"model.residual={'parallel' if parallel else 'sequential'}",
        *_heads(heads, heads, bias=bias),
        *_rope(fields, rotary_pct=0.25),
    ]

    def thirds(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    sources = {
        **_matrix("embed", "embed_in", fields.size("vocab_size"), width),
        **_norm("final_norm", "final_layer_norm", width),
    }
    for i in fields.layers("num_hidden_layers"):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        sources |= {
            **_norm(f"{ours}.norm", f"{theirs}.input_layernorm", width),
            **_norm(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm", width),
            **_matrix(f"{ours}.attention.qkv", f"{theirs}.attention.query_key_value", 3 * width, width, bias, thirds),
            **_matrix(f"{ours}.attention.out", f"{theirs}.attention.dense", width, width, bias),
            **_matrix(f"{ours}.mlp.up", f"{theirs}.mlp.dense_h_to_4h", inner, width, True),
            **_matrix(f"{ours}.mlp.down", f"{theirs}.mlp.dense_4h_to_h", width, inner, True),
        }
    constants = re.compile(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$")
    return Translation(overrides, sources, "gpt_neox.", constants)


def _gpt2(fields: Fields) -> Translation:
    """GPT2LMHeadModel, whose matrices are stored as [inputs, outputs]."""
    width, heads = fields.size("n_embd"), fields.size("n_head")
    inner = fields.size("n_inner", 4 * width)
    fields.require("scale_attn_weights", True)
    for field in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        fields.require(field, False)
    overrides = [
        *_sizes(fields, width, heads, inner, "n_layer", "n_positions"),
        *_layers(norm="layernorm", eps=fields.number("layer_norm_epsilon", 1e-5), bias=True),
        f"model.mlp={_gelu(fields, 'activation_function', 'gelu_new')}",
        "model.residual=sequential",
        *_heads(heads, heads, bias=True),
        "pos_encoding=learned",
        "pos_encoding.layers=[0]",
    ]

    def conv(ours: str, theirs: str, outputs: int, inputs: int) -> dict[str, Source]:
        return {
            f"{ours}.weight": Source({f"{theirs}.weight": (inputs, outputs)}, lambda weight: weight.T),
            f"{ours}.bias": Source({f"{theirs}.bias": (outputs,)}),
        }

    sources = {
        **_matrix("embed", "wte", fields.size("vocab_size"), width),
        "position.table": Source({"wpe.weight": (fields.size("n_positions"), width)}),
        **_norm("final_norm", "ln_f", width),
    }
    for i in fields.layers("n_layer"):
        ours, theirs = f"blocks.{i}", f"h.{i}"
        sources |= {
            **_norm(f"{ours}.norm", f"{theirs}.ln_1", width),
            **_norm(f"{ours}.mlp_norm", f"{theirs}.ln_2", width),
            **conv(f"{ours}.attention.qkv", f"{theirs}.attn.c_attn", 3 * width, width),
            **conv(f"{ours}.attention.out", f"{theirs}.attn.c_proj", width, width),
            **conv(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc", inner, width),
            **conv(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj", width, inner),
        }
    return Translation(overrides, sources, "transformer.", re.compile(r"\.attn\.(bias|masked_bias)$"))


def _llama(fields: Fields) -> Translation:
    """LlamaForCausalLM: SmolLM, Llama 3."""
    bias = fields.flag("attention_bias", False)
    return _of_llama_form(fields, bias=bias, mlp_bias=fields.flag("mlp_bias", False))


def _qwen2(fields: Fields) -> Translation:
    """Qwen2ForCausalLM: Llama with biases on q, k and v."""
    return _of_llama_form(fields, bias="qkv")


def _qwen3(fields: Fields) -> Translation:
    """Qwen3ForCausalLM: Llama with norms on q and k; a head is 128 wide, whatever the hidden size."""
    return _of_llama_form(fields, bias=fields.flag("attention_bias", False), qk_norm=True, head_dim=128)


def _of_llama_form(
    fields: Fields, bias: bool | str, mlp_bias: bool = False, qk_norm: bool = False, head_dim: int | None = None
) -> Translation:
    """head_dim: what a missing field means; None: hidden_size / heads."""
    width, heads, inner = (fields.size(f) for f in ("hidden_size", "num_attention_heads", "intermediate_size"))
    kv_heads = fields.size("num_key_value_heads", heads)
    head_dim = fields.size("head_dim", head_dim or width // heads)
    fields.require("hidden_act", *_SILU)
    overrides = [
        *_sizes(fields, width, heads, inner, "num_hidden_layers", "max_position_embeddings"),
        f"model.head_dim={'null' if head_dim * heads == width else head_dim}",
        *_layers(norm="rmsnorm", eps=fields.number("rms_norm_eps", 1e-6), bias=mlp_bias),
        "model.mlp=swiglu",
        "model.residual=sequential",
        *_heads(heads, kv_heads, bias, qk_norm),
        *_rope(fields, rotary_pct=1.0),
    ]
    sources = {
        **_matrix("embed", "embed_tokens", fields.size("vocab_size"), width),
        "final_norm.weight": Source({"norm.weight": (width,)}),
    }
    for i in fields.layers("num_hidden_layers"):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        attention = f"{theirs}.self_attn"
        rows = {
            f"{attention}.{part}_proj": n * head_dim for part, n in zip("qkv", (heads, kv_heads, kv_heads), strict=True)
        }
        gates = {f"{theirs}.mlp.{part}_proj": inner for part in ("gate", "up")}
        sources |= {
            f"{ours}.norm.weight": Source({f"{theirs}.input_layernorm.weight": (width,)}),
            f"{ours}.mlp_norm.weight": Source({f"{theirs}.post_attention_layernorm.weight": (width,)}),
            **_joined(f"{ours}.attention.qkv", rows, width, bool(bias)),
            **_matrix(f"{ours}.attention.out", f"{attention}.o_proj", width, heads * head_dim, bias is True),
            **_joined(f"{ours}.mlp.gate_up", gates, width, mlp_bias),
            **_matrix(f"{ours}.mlp.down", f"{theirs}.mlp.down_proj", width, inner, mlp_bias),
        }
        if qk_norm:
            norms = {part: Source({f"{attention}.{part}_norm.weight": (head_dim,)}) for part in "qk"}
            sources |= {f"{ours}.attention.{part}_norm.norm.weight": norm for part, norm in norms.items()}
    return Translation(overrides, sources, "model.", re.compile(r"rotary_emb\.inv_freq$"))


FAMILIES: Mapping[str, Callable[[Fields], Translation]] = {
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}


# --- overrides ------------------------------------------------------------------------------------------------------


def _sizes(fields: Fields, width: int, heads: int, inner: int, layers: str, length: str) -> list[str]:
    return [
        f"model.hidden_size={width}",
        f"model.num_layers={len(fields.layers(layers))}",
        f"model.heads={heads}",
        f"model.mlp_size={inner}",
        f"model.vocab_size={fields.size('vocab_size')}",
        f"seq_len={fields.size(length)}",
    ]


def _layers(norm: str, eps: float, bias: bool) -> list[str]:
    return [f"model.norm={norm}", f"model.norm_eps={eps}", f"model.bias={shown(bias)}"]


def _heads(heads: int, kv_heads: int, bias: bool | str, qk_norm: bool = False) -> list[str]:
    groups = ["attention=mha"] if kv_heads == heads else ["attention=gqa", f"kv_heads={kv_heads}"]
    return [*groups, f"attention.bias={shown(bias)}", f"attention.qk_norm={shown(qk_norm)}"]


def _gelu(fields: Fields, field: str, default: str) -> str:
    if (activation := fields.get(field, default)) == "gelu":
        return "gelu"
    fields.require(field, "gelu", *_TANH)
    assert activation in _TANH
    return "gelu_tanh"


# rope_type -> our kind, and its options by their names
_SCALINGS: Mapping[str, tuple[str | None, Mapping[str, str]]] = {
    "default": (None, {}),
    "linear": ("position_interpolation", {"factor": "factor"}),
    "dynamic": ("dynamic_ntk_transformers", {"factor": "factor"}),
    "llama3": (
        "llama3",
        {name: name for name in ("factor", "low_freq_factor", "high_freq_factor")}
        | {"original_max_position_embeddings": "original_length"},
    ),
    "yarn": (
        "yarn_channels",
        {name: name for name in ("factor", "beta_fast", "beta_slow", "truncate", "attention_factor")}
        | {"original_max_position_embeddings": "original_length"},
    ),
}


def _rope(fields: Fields, rotary_pct: float) -> list[str]:
    """transformers 5 writes all of it into rope_parameters; before, the parts were fields of their own.

    rotary_pct: the family's default.
    """
    where = "rope_scaling" if fields.get("rope_scaling", {}) else "rope_parameters"
    options = fields.get(where, {})
    if not isinstance(options, dict) or any(isinstance(value, dict) for value in options.values()):
        raise fields.refusal(where, "is not one mapping for all layers")
    outer = {
        "rope_theta": fields.get("rotary_emb_base", 10000.0),
        "partial_rotary_factor": fields.get("rotary_pct", rotary_pct),
    }
    given = {key: value for key, value in [*fields.values.items(), *options.items()] if value is not None}
    inner = Fields(fields.name, {**outer, **given})
    overrides = [
        "pos_encoding=rope",
        f"theta={inner.number('rope_theta')}",
        f"rotary_pct={inner.number('partial_rotary_factor')}",
    ]
    kind = str(options.get("rope_type") or options.get("type") or "default")
    if kind not in _SCALINGS:
        raise fields.refusal(where, f"is of a type that is not among {', '.join(_SCALINGS)}")
    our_kind, names = _SCALINGS[kind]
    known = {*names, "rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if unknown := [key for key, value in options.items() if key not in known and value is not None]:
        raise fields.refusal(where, f"has {unknown[0]}, which is not supported")
    if our_kind is None:
        return overrides
    scaling = {ours: shown(inner.values[theirs]) for theirs, ours in names.items() if theirs in inner.values}
    text = ",".join(f"{key}:{value}" for key, value in {"kind": our_kind, **scaling}.items())
    return [*overrides, f"pos_encoding.scaling={{{text}}}"]


# --- weights --------------------------------------------------------------------------------------------------------


def _matrix(
    ours: str,
    theirs: str,
    outputs: int,
    inputs: int,
    bias: bool = False,
    arrange: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Source]:
    shapes = {"weight": (outputs, inputs), **({"bias": (outputs,)} if bias else {})}
    return {f"{ours}.{part}": Source({f"{theirs}.{part}": shape}, arrange) for part, shape in shapes.items()}


def _joined(ours: str, rows: Mapping[str, int], inputs: int, bias: bool) -> dict[str, Source]:
    """One of our matrices, which a checkpoint has as several (name -> rows)."""
    sources = {f"{ours}.weight": Source({f"{name}.weight": (count, inputs) for name, count in rows.items()})}
    if bias:
        sources[f"{ours}.bias"] = Source({f"{name}.bias": (count,) for name, count in rows.items()})
    return sources


def _norm(ours: str, theirs: str, width: int) -> dict[str, Source]:
    """A LayerNorm."""
    return {f"{ours}.{part}": Source({f"{theirs}.{part}": (width,)}) for part in ("weight", "bias")}
