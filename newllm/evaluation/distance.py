"""Retrieval by distance: the row's length stays, the needle moves."""

import numpy as np

from newllm.data import Dataset, Tokenizer
from newllm.data.passkey import DIGITS, OPENING, ask, key_text
from newllm.errors import ConfigError, RunError
from newllm.evaluation import lengths as given
from newllm.evaluation.bounds import require
from newllm.evaluation.needles import Trial, check_counts, generator, judge_at, summary
from newllm.evaluation.passkey import CHANCE, Filler, key_trial, trained
from newllm.evaluation.subject import Findings, Subject, Table
from newllm.model import LanguageModel


class Distance:
    """Passkey retrieval in rows of one length, with the key `distance` tokens back: tells distance from length.

    Rows and scores are those of `newllm.evaluation.passkey.Passkey`. The distance D runs from the marker's first
    token to that of the query, so a digit stands D tokens before the same digit of the answer. Where the row has no
    room for it, as at 8x in rows of 8x, the marker follows the row's first token, some tokens (the key's) nearer.

    ``distance/margin@D``: mean nats per token of the wrong key − of the true one. ``distance/accuracy@D``: share of
    trials with a margin above 0; chance is 0.5. tables/distance.csv has a line per distance. A trial has the same
    keys and the same filler at all distances: nothing but the needle moves, and chance shifts a curve as a whole.

    length, distances: tokens, or multiples of the training length. filler, seed: as there.
    """

    def __init__(
        self,
        length: int | str = "8x",
        distances: list[int | str] = ["0.5x", "1x", "1.5x", "2x", "2.5x", "3x", "4x", "6x", "8x"],  # noqa: B006
        trials: int = 20,
        digits: int = DIGITS,
        filler: Filler = "varied",
        seed: int = 0,
    ):
        given.check([length], "eval.distance.length")
        given.check(distances, "eval.distance.distances")
        if not distances:
            raise ConfigError("eval.distance.distances must have a distance at least, as in [0.5x,1x,2x]; got [].")
        check_counts("eval.distance", trials=trials, digits=digits)
        self.length, self.distances, self.trials = length, distances, trials
        self.digits, self.filler, self.seed = digits, filler, seed

    def check(self, data: Dataset, model: LanguageModel, memory: bool = True) -> None:
        """ConfigError for a length or distances that this text, encoding, memory or marker cannot give."""
        length, distances = self._tokens(model)
        require("eval.distance.length", [length], model, len(data.val_tokens), memory, several=False)
        if max(distances) > length:
            raise ConfigError(
                f"eval.distance.distances goes to {max(distances):,} tokens, and rows have {length:,}; "
                f"type eval.distance.length={max(distances)}, or leave the longer distances out."
            )
        marker = len(ask(data.tokenizer, OPENING, key_text(np.zeros(self.digits, dtype=np.int64)))[0].ids)
        if distances[0] < marker:
            raise ConfigError(
                f"eval.distance.distances has {distances[0]} tokens, and the marker itself takes {marker} with this "
                f"tokenizer; take distances from {marker} on."
            )
        self._trials(data.tokenizer, data.val_tokens, length, distances[0])

    def __call__(self, subject: Subject) -> Findings:
        self.check(subject.data, subject.model, memory=False)
        length, distances = self._tokens(subject.model)
        tokenizer, text = subject.data.tokenizer, subject.data.val_tokens
        trials = [one for distance in distances for one in self._trials(tokenizer, text, length, distance)]
        found, failed = judge_at(subject, length, trials)
        if found is None:
            raise RunError(f"eval.distance has measured nothing: {length:,} tokens: {failed}.")
        metrics: dict[str, float] = {}
        table: Table = []
        screen: Table = []
        for i, distance in enumerate(distances):
            row = {"distance": distance, "length": length, **found.of(slice(i * self.trials, (i + 1) * self.trials))}
            table.append(row)
            metrics |= {f"distance/{name}@{distance}": float(row[name]) for name in ("accuracy", "margin")}
            multiple = f"{distance / subject.model.seq_len:g}x"
            screen.append({"distance": distance, "of training": multiple, **summary(row)})
        body: list = [
            screen,
            f"Rows of {length:,} tokens, the key so far back; {self.trials} trials a distance; {CHANCE}",
            trained(subject),
        ]
        return Findings("Retrieval by distance", metrics, {"distance": table}, body)

    def _tokens(self, model: LanguageModel) -> tuple[int, list[int]]:
        (length,) = given.parse([self.length], model.seq_len, "eval.distance.length")
        return length, given.parse(self.distances, model.seq_len, "eval.distance.distances")

    def _trials(self, tokenizer: Tokenizer, text: np.ndarray, length: int, distance: int) -> list[Trial]:
        return [
            key_trial(
                tokenizer,
                text,
                length,
                digits=self.digits,
                before=lambda room, marker: room + marker - distance,
                random=generator(self.seed, "distance", "trial", length, trial),
                varied=self.filler == "varied",
                option="eval.distance.length",
            )
            for trial in range(self.trials)
        ]
