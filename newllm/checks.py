"""Bounds of numbers. An error names the option, its bound, an example to type and the value."""

import math

from newllm.errors import ConfigError

MOST_WIDTH, MOST_LAYERS, MOST_THREADS = 1_000_000, 10_000, 1024  # beyond any machine; larger ones are typing errors
MOST_NEW_TOKENS = 1_000_000


def above(name: str, value: float, bound: float, example: float) -> None:
    """Raises ConfigError unless value > bound."""
    if not value > bound:
        raise ConfigError(f"{name} must be greater than {bound:g}, as in {name}={example:g}; got {value:g}.")


def at_least(name: str, value: float, bound: float, example: float) -> None:
    """Raises ConfigError unless value >= bound."""
    if not value >= bound:
        raise ConfigError(f"{name} must be {bound:g} or greater, as in {name}={example:g}; got {value:g}.")


def within(name: str, value: float, low: float, high: float, example: float) -> None:
    """Raises ConfigError unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{name} must lie in [{low:g}, {high:g}], as in {name}={example:g}; got {value:g}.")


def sampling(max_new_tokens: int, temperature: float, top_p: float, seed: int, flags: bool = False) -> None:
    """Raises ConfigError for a value of `generate` that is out of range. flags: name it as the command does."""
    names = ("max_new_tokens", "temperature", "top_p", "seed")
    tokens, heat, nucleus, number = (f"--{name.replace('_', '-')}" if flags else name for name in names)
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"{heat} must be 0 (greedy) or a greater finite number; got {temperature:g}.")
    if not 0 < top_p <= 1:
        raise ConfigError(f"{nucleus} must lie in (0, 1]; got {top_p:g}.")
    if not 1 <= max_new_tokens <= MOST_NEW_TOKENS:
        raise ConfigError(f"{tokens} must lie in [1, {MOST_NEW_TOKENS:,}]; got {max_new_tokens}.")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"{number} must be a whole number from 0 to 2^63 - 1; got {seed}.")
