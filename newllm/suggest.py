"""Suggestions for a mistyped name."""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name closest to `word`, or None if none is close."""
    names = sorted(set(names))
    inside = [name for name in names if len(word) > 2 and (name.startswith(word) or word.startswith(name))]
    close = get_close_matches(word, names, n=1, cutoff=0.6) or inside
    return max(close, key=lambda name: SequenceMatcher(None, word, name).ratio(), default=None)


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """The end of an error sentence: ``did you mean theta? (there are: theta, slope)``; the names are always listed."""
    names = list(names)
    close = nearest(word, names)
    listed = ", ".join(names) if names else "nothing"
    return f"did you mean {prefix}{close}? (there are: {listed})" if close else f"expected one of: {listed}"
