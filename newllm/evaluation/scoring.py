"""How likely a model finds given continuations: only the logits that this takes, batched by length."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from newllm.errors import RunError
from newllm.evaluation.subject import Subject
from newllm.training.loss import token_losses

Ids = Sequence[int]
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]  # states [N, hidden], head [V, hidden], labels [N] -> [N, ...]

_WORTH = 100  # tokens whose reading takes longer than a cache


def score(
    subject: Subject, prompts: Sequence[Ids], continuations: Sequence[Ids], measure: Measure | None = None
) -> list[np.ndarray]:
    """Nats (fp64) of every token of each continuation after its prompt; or what `measure` takes of it.

    A prompt has one token at least, since nothing predicts a row's first token (RunError). A prompt with several
    continuations is read once where that halves the tokens to read, or saves a hundred: its keys and values are then
    kept in a cache.
    """
    measure = measure or token_losses
    if len(prompts) != len(continuations) or not all(prompts) or not all(continuations):
        raise RunError("score() needs as many continuations as prompts, each of one token or more")
    nats: list[np.ndarray] = [np.empty(0)] * len(prompts)
    together: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        together.setdefault(tuple(prompt), []).append(index)
    shared = {prompt: indices for prompt, indices in together.items() if _shares(prompt, indices, continuations)}
    for index, found in _behind_prompts(subject, shared, continuations, measure):
        nats[index] = found
    alone = [index for prompt, indices in together.items() if prompt not in shared for index in indices]
    for index, found in _in_rows(subject, alone, prompts, continuations, measure):
        nats[index] = found
    return nats


def _shares(prompt: Ids, indices: list[int], continuations: Sequence[Ids]) -> bool:
    rest = sum(len(continuations[index]) - 1 for index in indices)
    return len(prompt) * (len(indices) - 1) > min(len(prompt) + rest, _WORTH)


def _in_rows(
    subject: Subject, indices: list[int], prompts: Sequence[Ids], continuations: Sequence[Ids], measure: Measure
) -> Iterator[tuple[int, np.ndarray]]:
    """Prompt and continuation in one row."""
    rows = {index: [*prompts[index], *continuations[index]] for index in indices}
    for batch in _batches(indices, lambda index: len(rows[index]) - 1, subject.tokens):
        inputs = _padded([rows[index][:-1] for index in batch], 0).to(subject.device)
        labels = _padded([rows[index][1:] for index in batch], -100)
        for row, index in enumerate(batch):
            labels[row, : len(prompts[index]) - 1] = -100
        labels = labels.to(subject.device)
        scored = labels != -100
        with subject.computing() as model:
            found = measure(model.hidden(inputs)[scored], model.head_weight, labels[scored])
        yield from _by_continuation(batch, found, continuations)


def _behind_prompts(
    subject: Subject, shared: dict[tuple[int, ...], list[int]], continuations: Sequence[Ids], measure: Measure
) -> Iterator[tuple[int, np.ndarray]]:
    """Continuations behind the cache of their prompts. Prompts of one length are read side by side."""
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for prompt in shared:
        by_length.setdefault(len(prompt), []).append(prompt)
    for length, group in by_length.items():
        most = max(1, subject.tokens // length)
        for start in range(0, len(group), most):
            yield from _behind(subject, group[start : start + most], shared, continuations, measure)


def _behind(
    subject: Subject, prompts: list[tuple[int, ...]], shared: dict[tuple[int, ...], list[int]],
    continuations: Sequence[Ids], measure: Measure,
) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    length = len(prompts[0])
    row_of = {index: row for row, prompt in enumerate(prompts) for index in shared[prompt]}
    with subject.computing() as model:
        cache = model.new_cache(capacity=length)
        before = model.hidden(torch.tensor(prompts, device=subject.device), cache)[:, -1:]  # [P, 1, hidden]
    for batch in _batches(list(row_of), lambda index: length + len(continuations[index]), subject.tokens):
        rows = torch.tensor([row_of[index] for index in batch], device=subject.device)
        labels = _padded([continuations[index] for index in batch], -100).to(subject.device)  # [B, W]
        with subject.computing() as model:
            hidden = before[rows]
            if labels.shape[1] > 1:
                inputs = _padded([continuations[index][:-1] for index in batch], 0).to(subject.device)
                behind = model.hidden(inputs, cache.select(rows, length + inputs.shape[1]))
                hidden = torch.cat((hidden, behind), dim=1)  # [B, W, hidden]
            scored = labels != -100
            found = measure(hidden[scored], model.head_weight, labels[scored])
        yield from _by_continuation(batch, found, continuations)


def _by_continuation(batch: list[int], found: Tensor, continuations: Sequence[Ids]) -> Iterator[tuple[int, np.ndarray]]:
    """What was found of the scored tokens of a batch, one row after another, cut into its continuations."""
    ends = np.cumsum([len(continuations[index]) for index in batch])[:-1]
    yield from zip(batch, np.split(found.cpu().double().numpy(), ends), strict=True)


def _batches(indices: list[int], length: Callable[[int], int], tokens: int) -> Iterator[list[int]]:
    """Indices of like length together, longest first, so many that their padded rows have at most `tokens` tokens."""
    left = sorted(indices, key=length, reverse=True)
    while left:
        most = max(1, tokens // length(left[0]))
        yield left[:most]
        left = left[most:]


def _padded(rows: list[Ids], value: int) -> Tensor:
    """[N, longest row]; filled up at the end, which in a causal model no earlier token sees."""
    padded = torch.full((len(rows), max(map(len, rows))), value)
    for to, ids in zip(padded, rows, strict=True):
        to[: len(ids)] = torch.tensor(ids)
    return padded
