"""The spectrum of a run's rotary encoding, from its configuration and without torch."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from newllm.errors import ConfigError
from newllm.position import frequencies
from newllm.position.frequencies.named import choose
from newllm.position.frequencies.scaled import scale

Node = Mapping[str, Any]


def wavelengths(config: Node, length: int) -> np.ndarray | None:
    """Tokens to a full turn of each rotary channel, fastest first, when inputs of `length` tokens are read.

    Float64 [K], infinite where a pair does not turn; None for encodings that turn no pairs. A learned tau counts with
    the value it starts at.
    """
    node = _rotary(config["pos_encoding"])
    if node is None:
        return None
    seq_len, head_dim = config["data"]["seq_len"], _head_dim(config)
    family = _FAMILIES[_class(node)]
    try:
        spectrum = family(node, int(head_dim * node.get("rotary_pct", 1.0)), head_dim, seq_len)
        scaled, _ = scale(spectrum, node.get("scaling"), length=length, seq_len=seq_len)
    except (ConfigError, KeyError, TypeError):
        return None  # of another version of newllm
    return frequencies.wavelengths(scaled)


def _class(node: Node) -> str:
    return str(node.get("_target_")).rpartition(".")[2]


def _rotary(node: Node) -> Node | None:
    """The node itself, or the first part of a sum, that turns pairs."""
    if _class(node) in _FAMILIES:
        return node
    return next((part for part in (node.get("parts") or {}).values() if _class(part) in _FAMILIES), None)


def _head_dim(config: Node) -> int:
    """Width of what turns: a head, or the rotary key of latent attention."""
    rope_dim = config["attention"].get("rope_dim")
    return int(rope_dim or config["model"]["hidden_size"] // config["model"]["heads"])


Family = Callable[[Node, int, int, int], np.ndarray]  # node, width, head_dim, seq_len -> [width / 2]


def _by_options(function: Callable[..., np.ndarray]) -> Family:
    """A family whose parameters are options of the node, under their names."""
    names = list(inspect.signature(function).parameters)
    return lambda node, width, head_dim, seq_len: function(
        dim=width, **{name: node[name] for name in names if name in node}
    )


def _evq(node: Node, width: int, head_dim: int, seq_len: int) -> np.ndarray:
    return frequencies.evq_cosh(width, node["theta"], _tau(node, head_dim, seq_len), node.get("grid", "midpoint"))


def _evq_split(node: Node, width: int, head_dim: int, seq_len: int) -> np.ndarray:
    kept = node.get("kept")
    tau = _tau(node, head_dim, seq_len)
    return frequencies.evq_split(width, node["theta"], tau, width // 4 if kept is None else kept)


def _tau(node: Node, head_dim: int, seq_len: int) -> float:
    tau = node.get("tau")
    return frequencies.optimal_tau(head_dim, seq_len) if tau is None else float(tau)


def _mix(node: Node, width: int, head_dim: int, seq_len: int) -> np.ndarray:
    names = ("geometric", "sigmoid", "anchored_polynomial", "hybrid", "evq_cosh", "evq_split")
    known: dict[str, Callable[..., np.ndarray]] = {name: getattr(frequencies, name) for name in names}
    sides = []
    for side in ("a", "b"):
        family, options = choose(side, "family", node[side], known, handed=1)
        sides.append(family(width, **options))
    return frequencies.mix(sides[0], sides[1], node["alpha"])


def _listed(node: Node, width: int, head_dim: int, seq_len: int) -> np.ndarray:
    return frequencies.listed(node["inv_freq"], width)


def _p_rope(node: Node, width: int, head_dim: int, seq_len: int) -> np.ndarray:
    return frequencies.proportional(frequencies.geometric(width, node["theta"]), node["fraction"])


def _whole_turns(node: Node, width: int, head_dim: int, seq_len: int) -> np.ndarray:
    """FoPE: what does not complete a turn within the training length does not turn."""
    geometric = frequencies.geometric(width, node["theta"])
    return np.where(geometric >= 2 * np.pi / seq_len, geometric, 0.0)


_FAMILIES: dict[str, Family] = {
    "Rope": _by_options(frequencies.geometric),
    "XPos": _by_options(frequencies.geometric),
    "RopeSigmoid": _by_options(frequencies.sigmoid),
    "RopeAnchoredPolynomial": _by_options(frequencies.anchored_polynomial),
    "RopeHybrid": _by_options(frequencies.hybrid),
    "RopeEvq": _evq,
    "RopeEvqSplit": _evq_split,
    "RopeMix": _mix,
    "RopeList": _listed,
    "PRope": _p_rope,
    "Fope": _whole_turns,
}
