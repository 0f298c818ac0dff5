"""What the parameters of frequencies may be, said in one way."""

from newllm.errors import ConfigError


def above(name: str, value: float, bound: float, example: float) -> None:
    """ConfigError unless value > bound."""
    if not value > bound:
        raise ConfigError(f"{name} must be greater than {bound:g}, as in {name}={example:g}; got {value:g}.")


def at_least(name: str, value: float, bound: float, example: float) -> None:
    """ConfigError unless value >= bound."""
    if not value >= bound:
        raise ConfigError(f"{name} must be {bound:g} or greater, as in {name}={example:g}; got {value:g}.")


def within(name: str, value: float, low: float, high: float, example: float) -> None:
    """ConfigError unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{name} must lie in [{low:g}, {high:g}], as in {name}={example:g}; got {value:g}.")


def channels(dim: int) -> int:
    """K = dim / 2; ConfigError unless that is a whole number above 0."""
    if dim <= 0 or dim % 2:
        raise ConfigError(f"the number of rotary dims must be even and greater than 0, as in dim=64; got {dim}.")
    return dim // 2
