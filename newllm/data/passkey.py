"""Passkeys: a marker that holds random digits, and training rows that contain it twice."""

from dataclasses import dataclass

import numpy as np

from newllm.data.tokenizer import Tokenizer
from newllm.errors import ConfigError
from newllm.seeding import stream

OPENING = "<<PASS:"
DIGITS = 5
_DEPTHS = 0.1, 0.9  # of the first marker, as shares of the row's own text
_SEED = 0  # never the run's: a seed changes the order of the rows, not what is in them


@dataclass(frozen=True)
class Asked:
    """Token ids of a text, cut into what is given (`query`) and what the model must find (`answer`)."""

    query: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        return self.query + self.answer


def ask(tokenizer: Tokenizer, opening: str, *endings: str) -> list[Asked]:
    """``opening + ending`` of each ending, tokenized whole and cut where the tokens of `opening` alone end.

    A tokenizer that joins the opening's last character with an ending's first one moves the cut back, to the same
    place for all endings: answers then begin with a token that belongs to both sides.
    """
    alone = tokenizer.encode(opening)
    texts = [tokenizer.encode(opening + ending) for ending in endings]
    cut = min(_shared(alone, ids) for ids in texts)
    return [Asked(ids[:cut], ids[cut:]) for ids in texts]


def key_text(digits: np.ndarray) -> str:
    """``3-1-4-1-5>>``, what follows ``<<PASS:``; between dashes a byte-level BPE gives each digit a token."""
    return "-".join(str(digit) for digit in digits) + ">>"


class PasskeyRows:
    """Training rows that teach a model to copy a key from far back; `share` of the rows, chosen by their index.

    A chosen row keeps its own text except for the end, and holds the marker ``<<PASS:d-d-d-d-d>>`` twice: at 10 to
    90 % of that text, and as its last tokens, where only the first marker tells the digits. All labels are scored (the
    ordinary loss of a language model). Key and depth come from the stream of the row's index, the same in all runs;
    evaluation draws its keys from other streams. The published mix takes its filler from 50,000 tokens of validation
    text, which its evaluation uses too; this one takes none.

    train/loss and train/ppl include the markers. Validation rows stay plain and choose the best epoch: if a large share
    makes plain text worse, trainer.eval_weights=last evaluates the last weights.
    """

    def __init__(self, share: float, rows: int, seq_len: int, tokenizer: Tokenizer):
        chosen = np.random.Generator(np.random.PCG64(stream(_SEED, "passkey", "rows"))).random(rows) < share
        self.chosen = chosen  # bool [rows]
        self.tokenizer = tokenizer
        marker = len(self._marker(np.zeros(DIGITS, dtype=np.int64)))
        if seq_len < 3 * marker:
            raise ConfigError(
                f"data.passkey puts two markers of {marker} tokens into a row, which takes rows of {3 * marker} or "
                f"more; type seq_len={3 * marker} or data.passkey=0"
            )

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def write(self, windows: np.ndarray, indices: np.ndarray) -> None:
        """Put markers into those of `windows` [B, T + 1], the tokens of the rows `indices` [B], that are chosen."""
        for place in np.flatnonzero(self.chosen[indices]):
            row = windows[place]
            generator = np.random.Generator(np.random.PCG64(stream(_SEED, "passkey", "row", int(indices[place]))))
            marker = self._marker(generator.integers(10, size=DIGITS))
            text = row[: len(row) - 2 * len(marker)]
            before = max(1, int(generator.uniform(*_DEPTHS) * len(text)))
            row[:] = np.concatenate((text[:before], marker, text[before:], marker))

    def _marker(self, digits: np.ndarray) -> np.ndarray:
        return np.array(self.tokenizer.encode(OPENING + key_text(digits)))


def _shared(a: list[int], b: list[int]) -> int:
    """Tokens with which both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
