"""Labels of a run, by which it is found again: its name, its tags and notes. They are no part of its configuration."""

from collections.abc import Mapping
from typing import Any

LABELS = ("name", "tags", "notes")


def value_of(key: str, text: str) -> str | list[str] | None:
    """The value of a label typed as ``key=text``: any text, which needs no quotes of its own; tags as ``a,b`` or
    ``[a, b]``."""
    whole = _unquoted(text)
    if key != "tags":
        return None if whole in ("", "null") else whole
    inner = whole[1:-1] if whole.startswith("[") and whole.endswith("]") else whole
    return [tag for part in inner.split(",") if (tag := _unquoted(part)) and tag != "null"]


def fits(labels: Mapping[str, Any], typed: Mapping[str, str]) -> bool:
    """Whether name and notes contain the typed texts, whatever their case, and the tags include the typed ones."""

    def contains(key: str, text: str) -> bool:
        wanted, own = value_of(key, text), labels.get(key)
        if isinstance(wanted, list):
            return {*wanted} <= {*map(str, own if isinstance(own, list) else [])}
        return str(wanted or "").lower() in str(own or "").lower()

    return all(contains(key, text) for key, text in typed.items())


def in_words(labels: Mapping[str, Any]) -> dict[str, str]:
    """Label -> its value as text, of those that have one."""
    known = {key: labels[key] for key in LABELS if labels.get(key)}
    return {key: ", ".join(map(str, value)) if isinstance(value, list) else str(value) for key, value in known.items()}


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
