"""The spectrum of a run's rotary encoding, from its configuration and without torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from newllm.errors import ConfigError
from newllm.position import frequencies
from newllm.position.frequencies.nodes import scale, spectrum
from newllm.position.frequencies.spectrum import rotary_dims

Node = Mapping[str, Any]


def wavelengths(config: Node, length: int) -> np.ndarray | None:
    """Tokens to a full turn of each rotary channel, fastest first, when inputs of `length` tokens are read.

    Float64 [K], infinite where a pair does not turn; None for encodings without a node `frequencies`, which turn no
    pairs. A learned tau counts with the value it starts at.
    """
    encoding = config["pos_encoding"]
    parts = [encoding, *(encoding.get("parts") or {}).values()]
    node = next((part for part in parts if "frequencies" in part), None)
    if node is None:
        return None
    model, rope_dim = config["model"], config["attention"].get("rope_dim")  # the rotary key of latent attention
    try:
        head_dim, seq_len = int(rope_dim or model["hidden_size"] // model["heads"]), config["data"]["seq_len"]
        dims = rotary_dims(head_dim, node.get("rotary_pct", 1.0))
        trained = spectrum(node["frequencies"], dims, theta=node.get("theta"), head_dim=head_dim, seq_len=seq_len)
        scaled, _ = scale(trained, node.get("scaling"), length=length, seq_len=seq_len)
    except (ConfigError, KeyError, TypeError):
        return None  # of another version of newllm
    return frequencies.wavelengths(scaled)
