"""Windows of any length into the validation text: where they lie, and the losses of the tokens that they score."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from newllm.data.dataset import Rows
from newllm.evaluation.subject import Subject, Table


@dataclass(frozen=True)
class Windows:
    """The windows ``val[start : start + length]``: length − 1 inputs and as many targets, of which the last count.

    starts: int64 [N]. scored: targets that count, at most length − 1.
    """

    starts: np.ndarray
    length: int
    scored: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def ends(self) -> np.ndarray:
        """int64 [N], where each ends (exclusive)."""
        return self.starts + self.length

    def cover(self, other: "Windows") -> bool:
        """Whether these are the same windows and score what `other` scores, or more."""
        same = self.length == other.length and np.array_equal(self.starts, other.starts)
        return same and self.scored >= other.scored

    def losses(self, subject: Subject) -> np.ndarray:
        """Nats float32 [N, scored]; logits are made of these targets only."""
        rows = Rows(subject.data.val_tokens, self.starts, self.length - 1)
        found = []
        for inputs, labels in subject.batches(rows):
            labels[:, : self.length - 1 - self.scored] = -100
            found.append(subject.losses_of(inputs, labels)[:, -self.scored :].cpu().numpy())
        return np.concatenate(found)

    def targets(self, tokens: np.ndarray) -> np.ndarray:
        """The scored tokens [N, scored] of the text `tokens`."""
        found: np.ndarray = tokens[self.starts[:, None] + np.arange(self.length - self.scored, self.length)]
        return found


def slices(tokens: int, length: int, most: int) -> Windows:
    """``val[i L : (i + 1) L]``, i = 0, 1, …: as many as `tokens` hold, at most `most`; every target is scored."""
    return Windows(np.arange(min(most, tokens // length), dtype=np.int64) * length, length, length - 1)


def tails(ends: np.ndarray, length: int, scored: int) -> Windows:
    """Windows that end before the tokens `ends`, whatever their length: the same targets for all lengths."""
    return Windows(ends - length, length, scored)


def sliding(first: int, end: int, length: int, stride: int) -> Windows:
    """Windows that step on by `stride` and score as much: the targets first … end, as many as make whole strides.

    Each has length − stride tokens before it at least.
    """
    steps = np.arange((end - first) // stride, dtype=np.int64)
    return Windows(first + (steps + 1) * stride - length, length, stride)


def mean(losses: np.ndarray) -> tuple[float, float | None]:
    """Mean loss of windows [N, scored], each scoring as many tokens, and its standard error over the windows.

    So it is the mean of the windows' means and the token-weighted mean at once. No error of a single window: None.
    """
    each = losses.mean(axis=1, dtype=np.float64)
    return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else None


def by_position(losses: np.ndarray) -> Table:
    """Mean loss of the targets with 1, 2 – 3, 4 – 7 … tokens before them in the window, of slices' losses [N, L − 1].

    from, to: a bin's tokens of context, from ≤ t < to. Weighted by tokens, the bins' means give that of the slices.
    """
    length = losses.shape[1] + 1
    edges = [1 << power for power in range(length.bit_length()) if 1 << power < length]
    rows: Table = []
    for start, end in pairwise([*edges, length]):
        part = losses[:, start - 1 : end - 1]
        loss, se = mean(part)
        rows.append({"from": start, "to": end, "tokens": part.size, "loss": loss, "se": se, "ppl": float(np.exp(loss))})
    return rows
