"""Bounds of numbers. An error names the option, its bound, an example to type and the value."""

from newllm.errors import ConfigError

MOST_WIDTH, MOST_LAYERS, MOST_THREADS = 1_000_000, 10_000, 1024  # beyond any machine; larger ones are typing errors


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
