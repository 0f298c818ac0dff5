"""The words behind `newllm bench NAME`: options of the bench, and overrides of the run's configuration it measures."""

import math
from collections.abc import Sequence
from typing import Any

from newllm.errors import ConfigError
from newllm.suggest import did_you_mean


def parse(words: Sequence[str], options: dict[str, Any], defaults: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(options by name, overrides of a run's configuration), each with its defaults where no word says otherwise.

    An option's default shows its type: true or false, a whole number above 0, a number, whole numbers with commas
    between them, text (None: none). A bench without `defaults` measures no run, so it takes no other words.
    """
    found, overrides = dict(options), []
    for word in words:
        key, equals, text = word.partition("=")
        if key in options and equals:
            found[key] = _value(key, text, options[key])
        elif key in options:
            raise ConfigError(f"{word} has no value; type {_example(key, options[key])}.")
        elif not defaults:
            raise ConfigError(f"this bench has no option {key!r}; {did_you_mean(key, options)}.")
        else:
            overrides.append(word)
    given = {_key(word) for word in overrides}
    return found, [word for word in defaults if _key(word) not in given] + overrides


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _value(key: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ConfigError(f"{key} must be true or false; {did_you_mean(text, ['true', 'false'])}.")
        return text == "true"
    if isinstance(default, int):
        if not _is_count(text):
            raise ConfigError(f"{key} must be a whole number above 0, as in {_example(key, default)}; got {text}.")
        return int(text)
    if isinstance(default, float):
        return _number(key, text, default)
    if isinstance(default, list):
        parts = text.strip("[]").split(",")
        if not all(_is_count(part.strip()) for part in parts):
            raise ConfigError(f"{key} must be whole numbers above 0, as in {_example(key, default)}; got {text}.")
        return [int(part) for part in parts]
    return None if text in ("", "null") else text


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


def _number(key: str, text: str, default: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{key} must be a number, as in {_example(key, default)}; got {text}.")
    return number


def _example(key: str, default: Any) -> str:
    return f"{key}={typed(default)}"


def typed(default: Any) -> str:
    """A default as one types it."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return ",".join(map(str, default))
    return "null" if default is None else str(default)
