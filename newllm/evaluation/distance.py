"""Retrieval by distance: the length of the row is fixed and the needle moves."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from newllm.data import Dataset
from newllm.data.passkey_rows import DIGITS, OPENING, encode_questions, key_text
from newllm.errors import ConfigError
from newllm.evaluation.limits import check_lengths, parse_lengths, require_positive
from newllm.evaluation.passkey import CHANCE, Filler, Passkey
from newllm.evaluation.retrieval import Trial, screen_columns, summarize
from newllm.evaluation.subject import Table
from newllm.model import LanguageModel


class Distance(Passkey):
    """Passkey retrieval in rows of one length, with the key `distance` tokens back: separates distance from length.

    Rows and scores are those of `newllm.evaluation.passkey.Passkey`. The distance D runs from the marker's first
    token to that of the query, so a digit stands D tokens before the same digit of the answer. If the row has no
    room for that, as at 8x in rows of 8x, the marker follows the row's first token, nearer by the length of the key.

    ``distance/margin@D``: mean nats per token of the wrong key − of the true one. ``distance/accuracy@D``: share of
    trials with a margin above 0; chance is 0.5, and 95 % of chance results with 50 trials lie between 0.36 and 0.64.
    tables/distance.csv has a line per distance with Wilson's binomial interval. A trial has the same
    keys and filler at all distances: only the needle moves, and chance shifts a curve as a whole.

    length, distances: tokens, or multiples of the training length. filler, seed: as in `Passkey`.
    """

    name, title, option = "distance", "Retrieval by distance", "length"

    def __init__(
        self,
        length: int | str = "8x",
        distances: list[int | str] = ["0.5x", "1x", "1.5x", "2x", "2.5x", "3x", "4x", "6x", "8x"],  # noqa: B006
        trials: int = 50,
        digits: int = DIGITS,
        filler: Filler = "varied",
        seed: int = 0,
    ):
        check_lengths([length], "eval.distance.length")
        check_lengths(distances, "eval.distance.distances")
        if not distances:
            raise ConfigError("eval.distance.distances must have at least one distance, as in [0.5x,1x,2x]; got [].")
        require_positive("eval.distance", trials=trials, digits=digits)
        self.lengths, self.distances, self.trials = [length], distances, trials
        self.digits, self.filler, self.seed = digits, filler, seed

    def rounds(self, data: Dataset, model: LanguageModel, lengths: list[int]) -> Iterator[list[Trial]]:
        (length,) = lengths
        distances = parse_lengths(self.distances, model.seq_len, "eval.distance.distances")
        if distances[-1] > length:
            raise ConfigError(
                f"eval.distance.distances goes to {distances[-1]:,} tokens, and rows have {length:,}; "
                f"type eval.distance.length={distances[-1]}, or leave the longer distances out."
            )
        marker = len(encode_questions(data.tokenizer, OPENING, key_text(np.zeros(self.digits, dtype=np.int64)))[0].ids)
        if distances[0] < marker:
            raise ConfigError(
                f"eval.distance.distances has {distances[0]} tokens, and the marker itself takes {marker} with this "
                f"tokenizer; take distances from {marker} on."
            )
        yield [
            self.key_trial({"distance": distance, "length": length}, data, trial)
            for distance in distances
            for trial in range(self.trials)
        ]

    def metric_end(self, labels: dict[str, Any]) -> str:
        return f"@{labels['distance']}"

    def report(self, judged: list[dict[str, Any]], seq_len: int) -> tuple[dict[str, float], Table, list[str | Table]]:
        table = summarize(judged, "distance", "length")
        metrics = {f"distance/{name}@{row['distance']}": row[name] for row in table for name in ("accuracy", "margin")}
        screen = [
            {"distance": row["distance"], "of training": f"{row['distance'] / seq_len:g}x", **screen_columns(row)}
            for row in table
        ]
        rows = (
            f"Rows of {table[0]['length']:,} tokens, the key `distance` tokens back; {self.trials} trials per distance"
        )
        return metrics, table, [screen, f"{rows}; {CHANCE}"]
