"""Names in messages: suggestions for a mistyped one, and lists."""

from collections.abc import Iterable, Sequence
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


def listed(names: Sequence[str], most: int = 5) -> str:
    """``a, b and 3 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
