"""Texts of small retrieval tasks: statements to be hidden in filler, a query, and the answers it may have."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np

MOST_KEYS = 8  # two hops take three of the 26 letters for each
_LETTERS = np.array(list(string.ascii_uppercase))
_TOKENS_A_WORD = 8  # of the row for each word to be counted: the word takes five at most, the rest is filler


@dataclass(frozen=True)
class Puzzle:
    """statements: in the order in which they stand in the text. query: its end. answers: the right one first."""

    statements: list[str]
    query: str
    answers: list[str]


def needle(random: np.random.Generator, keys: int, length: int) -> Puzzle:
    """``<<K:7>>``, asked for by ``<<K:``; the answers are all ten digits, of which the text names one."""
    digits = random.permutation(10)
    key = random.choice(_LETTERS)
    return Puzzle([f"<<{key}:{digits[0]}>>"], f"<<{key}:", [str(digit) for digit in digits])


def multi_key_needle(random: np.random.Generator, keys: int, length: int) -> Puzzle:
    """`keys` of them with other letters and digits; the answers are their digits."""
    return _chains(random, keys, hops=0)


def one_hop(random: np.random.Generator, keys: int, length: int) -> Puzzle:
    """`keys` chains ``<<A:7>>`` … ``<<B:A>>``, asked for by ``<<value of B:``; the answers are their digits."""
    return _chains(random, keys, hops=1)


def two_hops(random: np.random.Generator, keys: int, length: int) -> Puzzle:
    """`keys` chains ``<<A:7>>`` … ``<<B:A>>`` … ``<<C:B>>``, asked for by ``<<value of C:``."""
    return _chains(random, keys, hops=2)


def frequent_word(random: np.random.Generator, keys: int, length: int) -> Puzzle:
    """``<<A>>`` … ``<<C>>`` …, one word for every 8 tokens of the row, asked for by ``<<most frequent:``.

    Of the `keys` letters one stands twice as often as the others do on average, or a little more; the answers are
    these letters.
    """
    letters = random.permutation(_LETTERS)[:keys].tolist()
    count = max(keys + 1, length // _TOKENS_A_WORD)
    first = ceil(2 * count / (keys + 1))
    others = [letters[1 + i % (keys - 1)] for i in range(count - first)]
    words = random.permutation([letters[0]] * first + others)
    return Puzzle([f"<<{word}>>" for word in words], "<<most frequent:", letters)


TASKS: dict[str, Callable[[np.random.Generator, int, int], Puzzle]] = {
    task.__name__: task for task in (needle, multi_key_needle, one_hop, two_hops, frequent_word)
}


def _chains(random: np.random.Generator, keys: int, hops: int) -> Puzzle:
    """Chains mix at random, each in its own order; the first one is asked for."""
    links = random.permutation(_LETTERS)[: keys * (hops + 1)].reshape(keys, hops + 1).tolist()
    digits = [str(digit) for digit in random.permutation(10)[:keys]]
    left = [
        [f"<<{letter}:{value}>>" for letter, value in zip(chain, [digit, *chain], strict=False)]
        for chain, digit in zip(links, digits, strict=True)
    ]
    turns = random.permutation(np.repeat(np.arange(keys), hops + 1))
    asked = links[0][-1]
    return Puzzle([left[chain].pop(0) for chain in turns], f"<<value of {asked}:" if hops else f"<<{asked}:", digits)
