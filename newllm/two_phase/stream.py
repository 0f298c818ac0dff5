"""One side of a corpus as one stream, in rows that follow one another: for models that carry what they have read on."""

from dataclasses import replace

import numpy as np

from newllm.data.dataset import Dataset, Rows
from newllm.data.facts import NOT_SCORED
from newllm.data.tokenizer import Tokenizer

_PORTION = 1 << 20  # tokens


class StreamRows(Rows):
    """Rows of seq_len tokens of the stream `tokens` [N], in order and without gaps: every token is read once.

    Labels are the next tokens, N - 1 in all. The last row is filled up with the stream's last token, whose labels are
    not scored.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int) -> None:
        super().__init__(tokens, np.arange(0, max(len(tokens) - 1, 1), seq_len), seq_len, text=tokens)

    @property
    def scored(self) -> int:
        return len(self.tokens) - 1

    def places(self, indices: np.ndarray) -> np.ndarray:
        """int64 [B, seq_len]: where in the stream the rows' inputs are."""
        return self.starts[np.asarray(indices, dtype=np.int64), None] + np.arange(self.seq_len)

    def arrays(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places, last = self.places(indices), len(self.tokens) - 1
        inputs = self.tokens[np.minimum(places, last)].astype(np.int64)
        labels = self.tokens[np.minimum(places + 1, last)].astype(np.int64)
        labels[places >= last] = NOT_SCORED
        return inputs, labels


class Places(StreamRows):
    """The same rows, with places of the stream as inputs in place of tokens. first: the number of its first place."""

    def __init__(self, tokens: np.ndarray, seq_len: int, first: int = 0) -> None:
        super().__init__(tokens, seq_len)
        self.first = first

    def arrays(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, labels = super().arrays(indices)
        return self.first + np.minimum(self.places(indices), len(self.tokens) - 1), labels


def in_one_row(rows: Rows, most: int | None = None) -> Rows:
    """A stream's rows as a single one, of its first `most` labels at most; other rows as they are."""
    if not isinstance(rows, StreamRows):
        return rows
    tokens = rows.tokens if most is None else rows.tokens[: most + 1]
    return StreamRows(tokens, max(len(tokens) - 1, 1))


def as_streams(data: Dataset) -> Dataset:
    """The same text in rows that follow one another, for training and for validation.

    Raises ConfigError where data.split=chunks has scattered it.
    """
    train, val = (StreamRows(data.stream(side), data.train.seq_len) for side in ("train", "val"))
    counts = {
        "data/train_tokens": train.scored,
        "data/val_tokens": val.scored,
        "data/train_rows": len(train),
        "data/val_rows": len(val),
        "data/bytes_per_token": _bytes(val.tokens[1:], data.tokenizer) / val.scored,
    }
    return replace(data, train=train, val=val, counts={**data.counts, **counts})


def _bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    portions = (tokens[start : start + _PORTION] for start in range(0, len(tokens), _PORTION))
    return sum(int(tokenizer.token_bytes[portion].sum()) for portion in portions)
