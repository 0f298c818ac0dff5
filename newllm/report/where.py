"""Choosing runs by what they have: `where=[attention=mha,seed=1|2|3]`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from newllm.analysis.groups import value_of
from newllm.analysis.labels import canonical
from newllm.errors import ConfigError
from newllm.suggest import did_you_mean

if TYPE_CHECKING:
    import pandas as pd


def where(frame: "pd.DataFrame", conditions: Sequence[str]) -> "pd.DataFrame":
    """The rows that fulfil every condition ``key=value`` or ``key=value|value``; unreadable runs fulfil none.

    A key is a choice, an axis or a setting. Raises ConfigError for a condition without ``=`` and an unknown key.
    """
    for condition in conditions:
        key, equals, typed = condition.partition("=")
        if not equals:
            raise ConfigError(f"where={condition}: expected key=value, as in where=[attention=mha,seed=1|2].")
        values = [value_of(config, key) if config else None for config in frame["config"]]
        if not frame.empty and all(value is None for value in values):
            names = [str(name) for name in frame if "/" not in str(name)]
            raise ConfigError(f"where={condition}: no run has {key}; {did_you_mean(key, names)}.")
        wanted = [_meant(word) for word in typed.split("|")]
        kept = [
            any(str(value) == word or canonical(value) == canonical(meant) for word, meant in wanted)
            for value in values
        ]
        frame = frame[kept]
    return frame.reset_index(drop=True)


def _meant(word: str) -> tuple[str, Any]:
    """A value as typed, and as YAML reads it (1e4 is a number)."""
    try:
        return word, float(word)
    except ValueError:
        return word, yaml.safe_load(word)
