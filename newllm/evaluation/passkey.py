"""Passkey retrieval: are five digits from far back in the text more likely than five other digits?"""

from collections.abc import Iterator
from typing import Any, Literal

from newllm.data import Dataset
from newllm.data.passkey_rows import DIGITS, OPENING, encode_questions, key_text
from newllm.errors import ConfigError
from newllm.evaluation.limits import check_lengths, require_positive
from newllm.evaluation.retrieval import Retrieval, Trial, generator, screen_columns, summarize
from newllm.evaluation.subject import Table
from newllm.model import LanguageModel

Filler = Literal["varied", "prefix"]

CHANCE = "chance is 0.5: a model that finds nothing prefers either key as often"


class Passkey(Retrieval):
    """Retrieval of a random key over depth and length, by likelihood (after Mohtashami & Jaggi 2023, arXiv 2305.16300).

    A row is filler, the marker ``<<PASS:d-d-d-d-d>>``, filler, ``<<PASS:``, and then the key ``d-d-d-d-d>>`` or a
    wrong key that differs in every digit. The model reads N tokens, all but the last, so at the training length no
    position is new to it. The marker begins at max(1, ⌊depth · filler⌋). Text is tokenized marker by marker, so that
    both markers of a key are the same tokens.

    ``passkey/margin@N``: mean nats per token of the wrong key − those of the true one, over all depths.
    ``passkey/accuracy@N``: share of trials whose margin is above 0. Chance is 0.5, and 95 % of chance results with 100
    trials lie between 0.40 and 0.60; the table has Wilson's binomial interval of each share, since the keys and, with
    varied filler, the texts of trials are drawn independently.
    ``passkey/exact@N``: share of trials in which greedy decoding gives the whole key.
    tables/passkey.csv has a line per length and depth.

    filler: "varied" takes it from a different place of the validation text in each trial, "prefix" always from its
    beginning, as published for RoPE frequency design (where N counts the tokens before the key). seed: of the trials,
    which are the same for all runs with the same text and tokenizer, whatever the run's seed. A small model finds
    nothing unless it was trained on such rows: `data.passkey` mixes them in.
    """

    name, title = "passkey", "Passkey retrieval"

    def __init__(
        self,
        lengths: list[int | str] = ["1x", "2x", "4x", "8x"],  # noqa: B006 (only read)
        depths: list[float] = [0.1, 0.25, 0.5, 0.75, 0.9],  # noqa: B006
        trials: int = 20,
        digits: int = DIGITS,
        filler: Filler = "varied",
        seed: int = 0,
    ):
        check_lengths(lengths, "eval.passkey.lengths")
        if not lengths or not depths:
            raise ConfigError(
                "eval.passkey needs a length and a depth, as in 'lengths=[1x,2x]' and 'depths=[0.1,0.5,0.9]'."
            )
        if any(not 0 <= depth <= 1 for depth in depths) or len(set(depths)) < len(depths):
            raise ConfigError(
                f"eval.passkey.depths are distinct shares of the row from 0 to 1, as in [0.1,0.5,0.9]; got {depths}."
            )
        require_positive("eval.passkey", trials=trials, digits=digits)
        self.lengths, self.depths, self.trials = lengths, depths, trials
        self.digits, self.filler, self.seed = digits, filler, seed

    def rounds(self, data: Dataset, model: LanguageModel, lengths: list[int]) -> Iterator[list[Trial]]:
        for length in lengths:
            yield [
                self.key_trial({"length": length, "depth": depth}, data, round(1000 * depth), trial)
                for depth in self.depths
                for trial in range(self.trials)
            ]

    def key_trial(self, labels: dict[str, Any], data: Dataset, *names: int) -> Trial:
        """A prompt that contains the true key; candidates are the true key and one wrong in every digit.

        labels: the length, and the place of the key by its depth or its distance. names: identify the trial.
        """
        random = generator(self.seed, self.name, "trial", labels["length"], *names)
        true = random.integers(10, size=self.digits)
        wrong = (true + random.integers(1, 10, size=self.digits)) % 10
        keys = encode_questions(data.tokenizer, OPENING, key_text(true), key_text(wrong))
        marker, what = keys[0].ids, f"a key of {self.digits} digits, twice, and a token of text"

        def place(count: int) -> list[int]:
            before = labels["depth"] * count if "depth" in labels else count + len(marker) - labels["distance"]
            return [min(max(1, int(before)), count)]

        return self.trial(labels, data, [marker], keys, what, place, random if self.filler == "varied" else None)

    def report(self, judged: list[dict[str, Any]], seq_len: int) -> tuple[dict[str, float], Table, list[str | Table]]:
        table, whole = summarize(judged, "length", "depth"), summarize(judged, "length")
        metrics = {
            f"passkey/{name}@{row['length']}": row[name] for row in whole for name in ("accuracy", "margin", "exact")
        }
        grid = []
        for row in whole:
            cells = [cell for cell in table if cell["length"] == row["length"]]
            by_depth = {f"{cell['depth']:g}": round(cell["accuracy"], 3) for cell in cells}
            grid.append({"length": row["length"], **by_depth, **screen_columns(row)})
        above = [f"{row['length']:,}" for row in whole if row["low"] > 0.5]
        return metrics, table, [
            "Accuracy by length and by depth of the key, then over all depths:",
            grid,
            f"accuracy: share of {self.trials * len(self.depths)} trials in which the true key is likelier than one "
            f"wrong in every digit; {CHANCE}",
            f"Above chance (95 % interval above 0.5) at {', '.join(above)} tokens" if above else "Nowhere above chance",
            "margin: nats per token of the wrong key - of the true one; exact: greedy decoding gives the whole key",
        ]  # fmt: skip
