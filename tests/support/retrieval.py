"""Models that retrieve perfectly or not at all, and the trials of an evaluator."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from newllm.evaluation.retrieval import Retrieval, Trial
from newllm.evaluation.subject import Subject
from tests.support.evaluation_subject import make_subject

LAST = 24  # positions at the end of a row for which Copier predicts a token


class Copier(nn.Module):
    """Predicts what followed the longest earlier match of the row's end: an induction head without limits."""

    hidden_size = vocab_size = 257
    seq_len = 64

    def __init__(self):
        super().__init__()
        self.head_weight = nn.Parameter(torch.eye(self.vocab_size))
        self.blocks = nn.ModuleList([nn.Linear(1, 1)])
        self.adapted: list[int] = []  # lengths that the encoding was adapted to
        self.position = SimpleNamespace(adapt=self.adapted.append, limit=None)

    def hidden(self, ids: Tensor, cache: "Ids | None" = None) -> Tensor:
        """[B, T, V]: 10 for the predicted token, 0 for the others; before the row's end nothing is predicted."""
        rows = ids if cache is None or cache.ids is None else torch.cat((cache.ids, ids), dim=1)
        if cache is not None:
            cache.ids = rows
        states = torch.zeros(*ids.shape, self.vocab_size)
        start = rows.shape[1] - ids.shape[1]
        for row, tokens in enumerate(rows.numpy()):
            for end in range(max(start + 1, len(tokens) - LAST), len(tokens) + 1):
                states[row, end - 1 - start, self._next(tokens[:end])] = 10.0
        return states

    @staticmethod
    def _next(tokens: np.ndarray) -> int:
        matches = np.arange(len(tokens) - 1)  # ends of stretches that the row's end repeats
        for back in range(len(tokens)):
            kept = matches[matches >= back]
            kept = kept[tokens[kept - back] == tokens[len(tokens) - 1 - back]]
            if not len(kept):
                break
            matches = kept
        return int(tokens[matches[-1] + 1])

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> "Ids":
        return Ids()


class Ids:
    """A cache of the tokens themselves."""

    def __init__(self, ids: Tensor | None = None):
        self.ids = ids

    def select(self, rows: Tensor, capacity: int) -> "Ids":
        assert self.ids is not None
        assert self.ids.shape[1] <= capacity
        return Ids(self.ids[rows])


def copying_subject() -> Subject:
    subject = make_subject()
    subject.model = Copier()  # type: ignore[assignment]
    return subject


def uniform_subject() -> Subject:
    """All tokens are equally likely."""
    subject = make_subject()
    torch.nn.init.zeros_(subject.model.head.weight)
    return subject


def trials_by_length(evaluator: Retrieval, subject: Subject) -> dict[int, list[Trial]]:
    """Length -> all trials of the evaluator."""
    trials: dict[int, list[Trial]] = {}
    for group in evaluator.rounds(subject.data, subject.model, evaluator.row_lengths(subject.model)):
        trials.setdefault(group[0].labels["length"], []).extend(group)
    return trials


@torch.no_grad()
def reference_nats(subject: Subject, prompt: list[int], answer: list[int]) -> float:
    """Mean nats of the answer by torch's cross-entropy of all logits."""
    logits = subject.model(torch.tensor([prompt + answer]))[0].double()
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(prompt[1:] + answer), reduction="none")
    return float(losses[-len(answer) :].mean())


@torch.no_grad()
def greedy_tokens(subject: Subject, prompt: list[int], count: int) -> list[int]:
    """The `count` tokens that greedy decoding gives after the prompt."""
    row = list(prompt)
    for _ in range(count):
        row.append(int(subject.model(torch.tensor([row]))[0, -1].argmax()))
    return row[len(prompt) :]
