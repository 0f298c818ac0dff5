"""Scores continuations of prompts: computes only the logits needed, in batches by length."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from newllm.data.facts import IGNORED
from newllm.errors import RunError
from newllm.evaluation.subject import Subject
from newllm.training.cross_entropy import token_losses

Ids = Sequence[int]
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]  # states [N, hidden], head [V, hidden], labels [N] -> [N, ...]

_WORTH_A_CACHE = 100  # saved tokens from which on a cache is faster


def score(
    subject: Subject, pairs: Sequence[tuple[Ids, Ids]], longest: int | None = None, measure: Measure = token_losses
) -> list[np.ndarray]:
    """Nats (fp64) of every token of each continuation after its prompt, or the results of `measure`.

    pairs: prompts and continuations. longest: tokens of a row; a longer one loses its beginning. A prompt with several
    continuations is read only once, with its keys and values in a cache, if that halves the tokens to read or saves a
    hundred. Raises RunError if a prompt is empty, since nothing predicts a row's first token.
    """
    if not all(prompt and continuation for prompt, continuation in pairs):
        raise RunError("score() needs prompts and continuations of one token or more")
    prompts, continuations = [], []
    for prompt, continuation in pairs:
        ids = [*prompt, *continuation][-longest if longest else 0 :]
        start = max(1, len(ids) - len(continuation))
        prompts.append(ids[:start])
        continuations.append(ids[start:])
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt), []).append(index)
    whole_rows: list[int] = []
    cached: dict[int, list[tuple[int, ...]]] = {}  # by length of the prompt, which form batches
    for prompt, indices in by_prompt.items():
        rest = sum(len(continuations[index]) - 1 for index in indices)
        if len(prompt) * (len(indices) - 1) > min(len(prompt) + rest, _WORTH_A_CACHE):
            cached.setdefault(len(prompt), []).append(prompt)
        else:
            whole_rows += indices

    results: list[np.ndarray] = [np.empty(0)] * len(prompts)

    def keep(batch: list[int], measured: Tensor) -> None:
        """Split the results for all scored tokens of a batch by continuation."""
        ends = np.cumsum([len(continuations[index]) for index in batch])[:-1]
        for index, part in zip(batch, np.split(measured.cpu().double().numpy(), ends), strict=True):
            results[index] = part

    lengths = {index: len(prompts[index]) + len(continuations[index]) - 1 for index in whole_rows}
    for batch in _batches(lengths, subject.tokens):
        inputs = _padded([prompts[index] + continuations[index][:-1] for index in batch], 0).to(subject.device)
        unscored = ([IGNORED] * (len(prompts[index]) - 1) for index in batch)
        labels = _padded([ids + continuations[index] for ids, index in zip(unscored, batch, strict=True)], IGNORED)
        labels = labels.to(subject.device)
        scored = labels != IGNORED
        with subject.computing() as model:
            keep(batch, measure(model.hidden(inputs)[scored], model.head_weight, labels[scored]))

    for length, group in cached.items():
        side_by_side = max(1, subject.tokens // length)
        for start in range(0, len(group), side_by_side):
            prompt_batch = group[start : start + side_by_side]
            row_of = {index: row for row, prompt in enumerate(prompt_batch) for index in by_prompt[prompt]}
            with subject.computing() as model:
                cache = model.new_cache(capacity=length)
                last = model.hidden(torch.tensor(prompt_batch, device=subject.device), cache)[:, -1:]  # [P, 1, hidden]
            lengths = {index: length + len(continuations[index]) for index in row_of}
            for batch in _batches(lengths, subject.tokens):
                in_cache = torch.tensor([row_of[index] for index in batch], device=subject.device)
                labels = _padded([continuations[index] for index in batch], IGNORED).to(subject.device)  # [B, W]
                scored = labels != IGNORED
                with subject.computing() as model:
                    hidden = last[in_cache]
                    if labels.shape[1] > 1:
                        inputs = _padded([continuations[index][:-1] for index in batch], 0).to(subject.device)
                        following = model.hidden(inputs, cache.select(in_cache, length + inputs.shape[1]))
                        hidden = torch.cat((hidden, following), dim=1)  # [B, W, hidden]
                    keep(batch, measure(hidden[scored], model.head_weight, labels[scored]))
    return results


def _batches(lengths: dict[int, int], tokens: int) -> Iterator[list[int]]:
    """The keys by descending length, in batches with at most `tokens` tokens including padding."""
    left = sorted(lengths, key=lengths.__getitem__, reverse=True)
    while left:
        most = max(1, tokens // lengths[left[0]])
        yield left[:most]
        left = left[most:]


def _padded(rows: list[list[int]], value: int) -> Tensor:
    """[N, longest row]; padded at the end, which earlier tokens of a causal model do not see."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
