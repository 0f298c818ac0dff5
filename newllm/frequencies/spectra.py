"""The spectra of configurations: their encodings are built, their models are not."""

import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from newllm.analysis.labels import labels, nodes_of, settings_of
from newllm.build import build
from newllm.errors import ConfigError
from newllm.sweep.command import read

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Spectrum:
    """inv_freq [pairs] of an encoding that is set for inputs of `length` tokens, of a model trained at `seq_len`."""

    label: str
    inv_freq: np.ndarray
    temperature: float
    length: int
    seq_len: int


def compose_all(overrides: Sequence[str], config_dir: str | None = None) -> list[Config]:
    """The effective configurations that a command line asks for, each encoding in each model once."""
    runs = read(overrides, config_dir=config_dir, several=True).runs
    different = {json.dumps(_of_encoding(run.config), sort_keys=True, default=str): run.config for run in runs}
    return list(different.values())


def spectra(configs: Sequence[Config], lengths: Sequence[int] = ()) -> list[Spectrum]:
    """A spectrum for each configuration and length; ConfigError if no encoding among them turns pairs."""
    names = labels(configs, [settings_of(nodes) for nodes in nodes_of(configs)])
    found = []
    for name, config in zip(names, configs, strict=True):
        encoding, seq_len = _encoding(config), config["data"]["seq_len"]
        for length in lengths or [seq_len]:
            encoding.adapt(length)
            inv_freq = np.array([frequency for _, _, frequency in encoding.pairs()])
            temperature = float(getattr(encoding, "temperature", 1.0))
            label = f"{name} · length {length}" if len(lengths) > 1 else name
            if len(inv_freq):
                found.append(Spectrum(label, inv_freq, temperature, length, seq_len))
    if not found:
        choices = ", ".join(dict.fromkeys(str(config["choices"]["pos_encoding"]) for config in configs))
        raise ConfigError(f"pos_encoding={choices} turns no pairs of dims, so there is no spectrum; try rope.")
    return found


def _encoding(config: Config) -> Any:
    """The encoding with the sizes that the model would hand over to it."""
    model, attention = config["model"], config["attention"]
    head_dim = model["hidden_size"] // model["heads"]
    return build(
        config["pos_encoding"],
        num_layers=model["num_layers"],
        heads=model["heads"],
        head_dim=pkgutil.resolve_name(attention["_target_"]).rotary_width(attention, head_dim),
        hidden_size=model["hidden_size"],
        seq_len=config["data"]["seq_len"],
    )


def _of_encoding(config: Config) -> list[Any]:
    return [config["pos_encoding"], config["model"], config["attention"], config["data"]["seq_len"]]
