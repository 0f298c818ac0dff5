"""Base of the retrieval tasks: rows of text with statements in it, a query at the end and candidate answers."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data import Dataset
from newllm.data.passkey_rows import EncodedQuestion
from newllm.errors import ConfigError, RunError
from newllm.evaluation.fingerprint import fingerprint
from newllm.evaluation.limits import parse_lengths, require_room, try_length
from newllm.evaluation.scoring import score
from newllm.evaluation.subject import Evaluator, Findings, Subject, Table
from newllm.model import LanguageModel, Transformer
from newllm.seeding import stream
from newllm.training.cross_entropy import CHUNK, token_losses


@dataclass(frozen=True)
class Trial:
    """A prompt and candidate answers, the first of which is right. A row is the prompt and a candidate.

    labels: columns of the table: length in tokens, and depth, distance or task.
    """

    labels: dict[str, Any]
    prompt: list[int]
    candidates: list[list[int]]


class Retrieval(Evaluator):
    """Base of the tasks: subclasses define the trials and the report.

    Trials depend only on the evaluator's seed, so all runs with the same text and tokenizer get the same ones. A round
    of trials that fails is named in the report, and the others keep their numbers.
    """

    name: ClassVar[str]  # in eval=[…], and name of the table
    title: ClassVar[str]
    option: ClassVar[str] = "lengths"
    lengths: Sequence[int | str]

    @abstractmethod
    def rounds(self, data: Dataset, model: LanguageModel, lengths: list[int]) -> Iterator[list[Trial]]:
        """Trials in rows of `lengths` tokens; the trials of a round have the same length and are scored together.

        Raises ConfigError if a row is too short for them.
        """

    @abstractmethod
    def report(self, judged: list[dict[str, Any]], seq_len: int) -> tuple[dict[str, float], Table, list[str | Table]]:
        """Metrics, table and console lines of the trials, each with its labels and the results of `judge`."""

    def metric_end(self, labels: dict[str, Any]) -> str:
        """How the names of the metrics end that a trial with these labels is part of."""
        return f"@{labels['length']}"

    def check(self, data: Dataset, model: LanguageModel) -> None:
        """Raises ConfigError if a length is too short, or too long for the text, the encoding or the memory."""
        lengths = self.row_lengths(model)
        several = self.option == "lengths"
        require_room(f"eval.{self.name}.{self.option}", lengths, model, len(data.val_tokens), several=several)
        for _ in self.rounds(data, model, lengths[:1]):
            pass

    def __call__(self, subject: Subject) -> Findings:
        judged, failures, model = [], [], subject.model
        done: dict[str, list[Any]] = defaultdict(list)  # ids of the trials behind each metric, by the end of its name
        for trials in self.rounds(subject.data, model, self.row_lengths(model)):
            length = trials[0].labels["length"]
            # Keys and values of a prompt in fp32 and their copy for its candidates, at most as in multi-head attention.
            width = model.heads * model.head_dim if isinstance(model, Transformer) else model.hidden_size
            cache = 2 * 4 * len(model.blocks) * 2 * width * length
            results, failed = try_length(subject, length, partial(judge, subject, trials), cache)
            if results and not np.isfinite([trial["margin"] for trial in results]).all():
                results, failed = None, "its losses are not finite"
            judged += results or []
            for trial in trials if results else []:
                done[self.metric_end(trial.labels)] += [trial.prompt, trial.candidates]
            if failed:
                task = f"{trials[0].labels['task']} of " if "task" in trials[0].labels else ""
                failures.append(f"FAILED: {task}{length:,} tokens: {failed}")
        if not judged:
            raise RunError(f"eval.{self.name} has measured nothing; {failures[0]}.")
        metrics, table, body = self.report(judged, model.seq_len)
        share = (subject.config.get("data") or {}).get("passkey") or 0
        body.append(
            f"Trained with passkeys in {share:.0%} of the rows (data.passkey)"
            if share
            else "No passkeys in training, so a small model is expected at chance; data.passkey=0.1 mixes some in"
        )
        prints = {end: fingerprint(subject.data.tokenizer.digest, ids) for end, ids in done.items()}
        scored = {name: prints[end] for name in metrics for end in prints if name.endswith(end)}
        return Findings(self.title, metrics, {self.name: table}, [*body, *failures], scored)

    def row_lengths(self, model: LanguageModel) -> list[int]:
        """The tokens that the model reads of a row, ascending."""
        return parse_lengths(self.lengths, model.seq_len, f"eval.{self.name}.{self.option}")

    def trial(
        self,
        labels: dict[str, Any],
        data: Dataset,
        statements: Sequence[Sequence[int]],
        questions: Sequence[EncodedQuestion],
        what: str,
        place: Callable[[int], Sequence[int]],
        random: np.random.Generator | None,
    ) -> Trial:
        """A row of filler and `statements`, the query at its end: a model reads all but the last token of the row.

        what: the content of the row, named in the ConfigError if it leaves no room for a token of filler. place: takes
        the number of tokens of filler; gives, ascending, how many of them stand before each statement. random: draws
        the part of the validation text that is the filler; None takes its beginning.
        """
        length = labels["length"]
        query, candidates = questions[0].query, [question.answer for question in questions]
        content = sum(map(len, statements)) + len(query) + max(map(len, candidates))
        if content > length:
            raise ConfigError(
                f"eval.{self.name}.{self.option} asks for rows of {length:,} tokens, and {what} takes {content:,} with "
                f"this tokenizer: leave out what is shorter than {content:,}."
            )
        count, text = length + 1 - content, data.val_tokens
        start = 0 if random is None else int(random.integers(len(text) - count + 1))
        filler, places = text[start : start + count].tolist(), [*place(count), count]
        prompt = filler[: places[0]]
        for statement, begin, end in zip(statements, places, places[1:], strict=False):
            prompt += [*statement, *filler[begin:end]]
        return Trial(labels, prompt + query, candidates)


def judge(subject: Subject, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Score every candidate of every trial after its prompt.

    Returns for each trial its labels and: margin, the nats per token of the wrong candidates (mean over candidates) -
    those of the right one; right, whether the right one has fewer nats per token than every other; exact, whether each
    of its tokens is the model's first choice.
    """
    pairs = [(trial.prompt, candidate) for trial in trials for candidate in trial.candidates]
    results = iter(score(subject, pairs, measure=nats_and_choice))
    judged = []
    for trial in trials:
        scored = [next(results) for _ in trial.candidates]  # for each candidate [tokens, 2]
        own, *others = (float(candidate[:, 0].mean()) for candidate in scored)
        margin, exact = float(np.mean(others)) - own, bool(scored[0][:, 1].all())
        judged.append({**trial.labels, "margin": margin, "right": own < min(others), "exact": exact})
    return judged


def nats_and_choice(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """fp32 [N, 2]: nats of each label, and 1 where it is the most likely token of the vocabulary, else 0.

    A continuation is the output of greedy decoding if and only if all its labels have a 1: as long as greedy decoding
    follows the labels, it reads the same tokens as this pass.
    """
    likeliest = torch.cat([F.linear(part, head).argmax(-1) for part in hidden.split(CHUNK)])
    return torch.stack((token_losses(hidden, head, labels), (likeliest == labels).float()), dim=1)


def summarize(judged: list[dict[str, Any]], *labels: str) -> Table:
    """A line for each group of consecutive trials with equal `labels`, with Wilson's 95 % interval of the accuracy."""
    rows: Table = []
    for _, group in groupby(judged, itemgetter(*labels)):
        trials = list(group)
        right, margin, exact = (np.array([trial[what] for trial in trials]) for what in ("right", "margin", "exact"))
        low, high = wilson(int(right.sum()), len(right))
        rows.append(
            {label: trials[0][label] for label in labels}
            | {"trials": len(right), "accuracy": float(right.mean()), "margin": float(margin.mean())}
            | {"exact": float(exact.mean()), "low": low, "high": high}
        )
    return rows


def screen_columns(row: dict[str, Any]) -> dict[str, float | str]:
    """Columns for the screen: accuracy with its interval, margin, exact match."""
    accuracy, margin, exact = (round(row[what], 3) for what in ("accuracy", "margin", "exact"))
    return {"accuracy": accuracy, "95 %": f"{row['low']:.2f}-{row['high']:.2f}", "margin": margin, "exact": exact}


def wilson(right: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's (1927) interval of a share; unlike the normal interval, not empty at 0 and 1. 95 % by default."""
    share = right / trials
    centre = share + z * z / (2 * trials)
    half = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    below = 1 + z * z / trials
    return float(max(0.0, (centre - half) / below)), float(min(1.0, (centre + half) / below))


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """The random generator of one trial, which depends only on the evaluator's seed and the trial's names."""
    return np.random.Generator(np.random.PCG64(stream(seed, *names)))
