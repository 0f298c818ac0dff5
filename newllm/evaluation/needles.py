"""Retrieval from long rows: text with needles in it, a query at its end, and candidates for what comes next."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.errors import ConfigError
from newllm.evaluation import scoring
from newllm.evaluation.memory import free_bytes, gigabytes, row_bytes
from newllm.evaluation.subject import Subject
from newllm.model import LanguageModel
from newllm.seeding import stream
from newllm.training.loss import CHUNK, token_losses


@dataclass(frozen=True)
class Trial:
    """A prompt, and candidates of which the first is right. A row is the prompt and a candidate."""

    prompt: list[int]
    candidates: list[list[int]]


@dataclass(frozen=True)
class Outcomes:
    """Of each trial: what a model made of it, as arrays [trials].

    margin: mean nats per token of the wrong candidates (of each, then over them) - those of the right one.
    right: the right candidate has fewer nats per token than every other.
    exact: every token of the right candidate is the model's first choice (`nats_and_choice`).
    """

    margin: np.ndarray
    right: np.ndarray
    exact: np.ndarray

    def of(self, trials: slice) -> dict[str, float | int]:
        """Number and means of some of the trials, with Wilson's 95 % interval of the share of right ones."""
        right = self.right[trials]
        low, high = wilson(int(right.sum()), len(right))
        return {
            "trials": len(right),
            "accuracy": float(right.mean()),
            "margin": float(self.margin[trials].mean()),
            "exact": float(self.exact[trials].mean()),
            "low": low,
            "high": high,
        }


def summary(whole: dict[str, float | int]) -> dict[str, float | str]:
    """Columns for the screen: accuracy with its interval, margin, exact match."""
    return {
        "accuracy": round(whole["accuracy"], 3),
        "95 %": f"{whole['low']:.2f}-{whole['high']:.2f}",
        "margin": round(whole["margin"], 3),
        "exact": round(whole["exact"], 3),
    }


def judge(subject: Subject, trials: Sequence[Trial]) -> Outcomes:
    """Score every candidate of every trial behind its prompt, from the candidate's first token on."""
    prompts = [trial.prompt for trial in trials for _ in trial.candidates]
    candidates = [candidate for trial in trials for candidate in trial.candidates]
    found = iter(scoring.score(subject, prompts, candidates, nats_and_choice))
    margin, right, exact = [], [], []
    for trial in trials:
        scored = [next(found) for _ in trial.candidates]  # of each candidate [tokens, 2]
        own, *others = (float(one[:, 0].mean()) for one in scored)
        margin.append(float(np.mean(others)) - own)
        right.append(own < min(others))
        exact.append(bool(scored[0][:, 1].all()))
    return Outcomes(np.array(margin), np.array(right), np.array(exact))


def judge_at(subject: Subject, length: int, trials: Sequence[Trial]) -> tuple[Outcomes | None, str]:
    """`judge` of trials of `length` tokens, or None and why it failed: other lengths must not be lost with it."""
    needed, free = row_bytes(subject.model, length) + _cache_bytes(subject.model, length), free_bytes(subject.device)
    if free is not None and needed > free:  # trying would have the system kill the process
        return None, f"a row takes about {gigabytes(needed)} and {gigabytes(free)} are free on {subject.device}"
    try:
        with subject.at_length(length):
            found = judge(subject, trials)
    except (MemoryError, RuntimeError) as error:  # torch reports memory that runs out as either
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()
        return None, (str(error) or type(error).__name__).splitlines()[0]
    return (found, "") if np.isfinite(found.margin).all() else (None, "its losses are not finite")


def _cache_bytes(model: LanguageModel, length: int) -> int:
    """Of a prompt's keys and values in fp32, and of their copy for its candidates; at most those of multi-head ones."""
    return 2 * 4 * len(model.blocks) * 2 * model.hidden_size * length


def nats_and_choice(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """fp32 [N, 2]: nats of each label, and 1 where it is the likeliest token of the vocabulary, else 0.

    A continuation whose labels all have a 1 is what greedy decoding gives, and no other is: if the tokens emitted so
    far are its first ones, the model has read what it reads here, and its next choice is the next label or is not.
    """
    likeliest = torch.cat([F.linear(part, head).argmax(-1) for part in hidden.split(CHUNK)])
    return torch.stack((token_losses(hidden, head, labels), (likeliest == labels).float()), dim=1)


def wilson(right: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a share by Wilson (1927): never empty at 0 and 1, unlike the normal one. 95 % by default."""
    share = right / trials
    centre = share + z * z / (2 * trials)
    half = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    below = 1 + z * z / trials
    return float(max(0.0, (centre - half) / below)), float(min(1.0, (centre + half) / below))


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Of one trial: nothing but the evaluator's seed and the trial's own names moves it, so all runs get the same."""
    return np.random.Generator(np.random.PCG64(stream(seed, *names)))


def stretch(text: np.ndarray, count: int, random: np.random.Generator | None) -> list[int]:
    """`count` tokens of `text` [N] that follow one another: from a place drawn by `random`, or its first."""
    start = 0 if random is None else int(random.integers(len(text) - count + 1))
    return text[start : start + count].tolist()


def check_counts(node: str, **counts: int) -> None:
    """ConfigError for a count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{node}.{name} must be at least 1, as in {node}.{name}=5; got {count}.")


def too_short(option: str, length: int, needed: int, what: str) -> ConfigError:
    """The error of a row that has no room for what it must hold."""
    return ConfigError(
        f"{option} asks for rows of {length:,} tokens, and {what} takes {needed:,} with this tokenizer: leave out what "
        f"is shorter than {needed:,}."
    )
