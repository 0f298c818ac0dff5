"""Lengths of rows as a configuration gives them: tokens, or multiples of the training length."""

import re
from collections.abc import Sequence

from newllm.errors import ConfigError

_MULTIPLE = re.compile(r"(\d+(?:\.\d+)?)x")
_LEAST = 2  # one token that is read and one that is predicted


def parse(lengths: Sequence[int | str], seq_len: int, option: str) -> list[int]:
    """Tokens of each length, ascending, each once: "2x" is twice `seq_len`, 2048 is itself.

    A multiple that comes to a fraction of a token is rounded down. option: what the error names, as in
    "eval.extrapolation.lengths". Raises ConfigError for text that is no multiple, and for fewer than two tokens.
    """
    check(lengths, option)
    found = set()
    for length in lengths:
        tokens = length if isinstance(length, int) else int(float(length.removesuffix("x")) * seq_len)
        if tokens < _LEAST:
            raise ConfigError(
                f"{option} must be {_LEAST} tokens or more each, as in [{seq_len},{2 * seq_len}] or [1x,2x]; "
                f"got {length}."
            )
        found.add(tokens)
    return sorted(found)


def check(lengths: Sequence[int | str], option: str) -> None:
    """ConfigError unless each is a number of tokens or a multiple, which can be told without the training length."""
    for length in lengths:
        if not isinstance(length, int) and not _MULTIPLE.fullmatch(length):
            raise ConfigError(
                f"{option} must be tokens or multiples of the training length, as in [1024,4096] or [1x,2x,4x]; "
                f"got {length!r}."
            )
