"""Passkeys: markers with random digits, and training rows that contain one twice."""

from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from newllm.data.tokenizer import Tokenizer
from newllm.errors import ConfigError
from newllm.seeding import stream

OPENING = "<<PASS:"
DIGITS = 5
_DEPTHS = 0.1, 0.9  # range of the first marker's depth, as shares of the row's own text
_SEED = 0  # fixed: a run's seed changes the order of rows, not their content


@dataclass(frozen=True)
class EncodedQuestion:
    """Token ids of a text: the part that the model sees (`query`) and the part that it predicts (`answer`)."""

    query: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        return self.query + self.answer


def encode_questions(tokenizer: Tokenizer, opening: str, *endings: str) -> list[EncodedQuestion]:
    """``opening + ending`` for each ending, tokenized as a whole and cut where the tokens of `opening` alone end.

    If a tokenizer merges the opening's last character with an ending's first one, the cut moves back, to the same place
    for all endings; answers then begin with a token that spans both parts.
    """
    texts = [tokenizer.encode(opening + ending) for ending in endings]
    places = zip(tokenizer.encode(opening), *texts, strict=False)
    cut = len([*takewhile(lambda ids: len({*ids}) == 1, places)])  # length of the prefix that all have in common
    return [EncodedQuestion(ids[:cut], ids[cut:]) for ids in texts]


def key_text(digits: np.ndarray) -> str:
    """``3-1-4-1-5>>``, which follows ``<<PASS:``; dashes make a byte-level BPE give each digit its own token."""
    return "-".join(str(digit) for digit in digits) + ">>"


class PasskeyRows:
    """Turns a `share` of the training rows, chosen by index, into rows that teach a model to copy a distant key.

    A chosen row keeps its own text except for the end, and contains the marker ``<<PASS:d-d-d-d-d>>`` twice: at 10 to
    90 % of that text, and as its last tokens, where only the first marker tells the digits. All labels are scored (the
    ordinary loss of a language model). Key and depth come from the stream of the row's index, the same in all runs;
    evaluation draws its keys from other streams. The published mix takes its filler from 50,000 tokens of validation
    text, which its evaluation uses too; here no validation text is used.

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
                f"data.passkey puts two markers of {marker} tokens into a row, so seq_len must be at least "
                f"{3 * marker}; type seq_len={3 * marker} or data.passkey=0"
            )

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def write(self, windows: np.ndarray, indices: np.ndarray) -> None:
        """Write markers into the chosen rows among `windows` [B, T + 1], the tokens of the rows `indices` [B]."""
        for place in np.flatnonzero(self.chosen[indices]):
            row = windows[place]
            generator = np.random.Generator(np.random.PCG64(stream(_SEED, "passkey", "row", int(indices[place]))))
            marker = self._marker(generator.integers(10, size=DIGITS))
            text = row[: len(row) - 2 * len(marker)]
            before = max(1, int(generator.uniform(*_DEPTHS) * len(text)))
            row[:] = np.concatenate((text[:before], marker, text[before:], marker))

    def _marker(self, digits: np.ndarray) -> np.ndarray:
        return np.array(self.tokenizer.encode(OPENING + key_text(digits)))
