"""Checks of numeric options."""

from newllm.errors import ConfigError


def require_at_least(node: str, minimum: int, **options: tuple[float, float]) -> None:
    """Raises ConfigError if an option of `node` (such as "model") is too small; options: name=(value, example)."""
    for name, (value, example) in options.items():
        if value < minimum:
            bound = "0 or greater" if minimum == 0 else f"at least {minimum}"
            raise ConfigError(f"{node}.{name} must be {bound}, as in {node}.{name}={example:g}; got {value:g}.")
