"""Passkey retrieval: are five digits that stood far back in the text likelier than five others?"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from newllm.data import Dataset, Tokenizer
from newllm.data.passkey import DIGITS, OPENING, ask, key_text
from newllm.errors import ConfigError, RunError
from newllm.evaluation import lengths as given
from newllm.evaluation.bounds import require
from newllm.evaluation.needles import Trial, check_counts, generator, judge_at, stretch, summary, too_short
from newllm.evaluation.subject import Findings, Subject, Table
from newllm.model import LanguageModel

Filler = Literal["varied", "prefix"]

CHANCE = "chance is 0.5: a model that finds nothing prefers either key as often"


class Passkey:
    """Retrieval of a random key over depth and length, by likelihood (after Mohtashami & Jaggi 2023, arXiv 2305.16300).

    A row is filler, the marker ``<<PASS:d-d-d-d-d>>``, filler, ``<<PASS:``, and then the key ``d-d-d-d-d>>`` or one
    that is wrong in every digit; the model reads N tokens of it, all but the last, so at the training length no
    position is new to it. The marker begins at max(1, ⌊depth · filler⌋). Text is tokenized marker by marker, so that
    both markers of a key are the same tokens.

    ``passkey/margin@N``: mean nats per token of the wrong key − of the true one, over all depths.
    ``passkey/accuracy@N``: share of trials whose margin is above 0. Chance is 0.5, and 95 % of chance results with 50
    trials lie between 0.36 and 0.64; Wilson's interval is beside each share.
    ``passkey/exact@N``: share of trials in which greedy decoding gives the whole key (`needles.nats_and_choice`).
    tables/passkey.csv has a line per length and depth.

    filler: "varied" takes it from another place of the validation text in each trial, "prefix" from its beginning in
    all, as published for RoPE frequency design (where N counts the tokens before the key).
    seed: of the trials, which are the same for all runs on one text and tokenizer, whatever the seed of the run.
    A small model finds nothing unless its training asked for it: `data.passkey` mixes such rows in.
    """

    def __init__(
        self,
        lengths: list[int | str] = ["1x", "2x", "4x", "8x"],  # noqa: B006 (only read)
        depths: list[float] = [0.1, 0.25, 0.5, 0.75, 0.9],  # noqa: B006
        trials: int = 10,
        digits: int = DIGITS,
        filler: Filler = "varied",
        seed: int = 0,
    ):
        given.check(lengths, "eval.passkey.lengths")
        if not lengths or not depths:
            raise ConfigError(
                "eval.passkey needs a length and a depth, as in lengths=[1x,2x] and depths=[0.1,0.5,0.9]."
            )
        if any(not 0 <= depth <= 1 for depth in depths) or len(set(depths)) < len(depths):
            raise ConfigError(
                f"eval.passkey.depths are distinct shares of the row from 0 to 1, as in [0.1,0.5,0.9]; got {depths}."
            )
        check_counts("eval.passkey", trials=trials, digits=digits)
        self.lengths, self.depths, self.trials = lengths, depths, trials
        self.digits, self.filler, self.seed = digits, filler, seed

    def check(self, data: Dataset, model: LanguageModel, memory: bool = True) -> None:
        """ConfigError for lengths that this text, encoding, memory or marker cannot give."""
        lengths = self._lengths(model)
        require("eval.passkey.lengths", lengths, model, len(data.val_tokens), memory)
        self._trials(data.tokenizer, data.val_tokens, lengths[0])

    def __call__(self, subject: Subject) -> Findings:
        self.check(subject.data, subject.model, memory=False)
        metrics: dict[str, float] = {}
        table: Table = []
        grid: Table = []
        above: list[str] = []
        failures: list[str] = []
        for length in self._lengths(subject.model):
            trials = self._trials(subject.data.tokenizer, subject.data.val_tokens, length)
            found, failed = judge_at(subject, length, trials)
            if found is None:
                failures.append(f"FAILED: {length:,} tokens: {failed}")
                continue
            cells = [
                {"length": length, "depth": depth, **found.of(slice(i * self.trials, (i + 1) * self.trials))}
                for i, depth in enumerate(self.depths)
            ]
            table += cells
            whole = found.of(slice(None))
            metrics |= {f"passkey/{name}@{length}": float(whole[name]) for name in ("accuracy", "margin", "exact")}
            shares = {f"{cell['depth']:g}": round(cell["accuracy"], 3) for cell in cells}
            grid.append({"length": length, **shares, **summary(whole)})
            above += [f"{length:,}"] * (whole["low"] > 0.5)
        if not table:
            raise RunError(f"eval.passkey has measured nothing; {failures[0]}.")
        body: list = [
            "Accuracy by length and by depth of the key, then over all depths:",
            grid,
            f"accuracy: share of {self.trials * len(self.depths)} trials in which the true key is likelier than one "
            f"wrong in every digit; {CHANCE}",
            f"Above chance (95 % interval above 0.5) at {', '.join(above)} tokens" if above else "Nowhere above chance",
            "margin: nats per token of the wrong key - of the true one; exact: greedy decoding gives the whole key",
            trained(subject),
            *failures,
        ]
        return Findings("Passkey retrieval", metrics, {"passkey": table}, body)

    def _lengths(self, model: LanguageModel) -> list[int]:
        return given.parse(self.lengths, model.seq_len, "eval.passkey.lengths")

    def _trials(self, tokenizer: Tokenizer, text: np.ndarray, length: int) -> list[Trial]:
        """depth by depth, `trials` of each."""
        return [
            key_trial(
                tokenizer,
                text,
                length,
                digits=self.digits,
                before=_at(depth),
                random=generator(self.seed, "passkey", "trial", length, round(1000 * depth), trial),
                varied=self.filler == "varied",
                option="eval.passkey.lengths",
            )
            for depth in self.depths
            for trial in range(self.trials)
        ]


def key_trial(
    tokenizer: Tokenizer,
    text: np.ndarray,
    length: int,
    *,
    digits: int,
    before: Callable[[int, int], int],
    random: np.random.Generator,
    varied: bool,
    option: str,
) -> Trial:
    """The true key and one wrong in every digit, behind a prompt that holds the true one.

    before(tokens of filler, tokens of the marker): filler before the marker; brought to 1 at least, and all at most.
    Prompt and longer key have length + 1 tokens together, of which a model reads `length`.
    """
    true = random.integers(10, size=digits)
    wrong = (true + random.integers(1, 10, size=digits)) % 10
    keys = ask(tokenizer, OPENING, key_text(true), key_text(wrong))
    marker, query = keys[0].ids, keys[0].query
    longest = max(len(key.answer) for key in keys)
    room = length + 1 - longest - len(query) - len(marker)
    if room < 1:
        raise too_short(option, length, length + 1 - room, f"a key of {digits} digits, twice, and a token of text")
    words = stretch(text, room, random if varied else None)
    first = min(max(1, before(room, len(marker))), room)
    return Trial([*words[:first], *marker, *words[first:], *query], [key.answer for key in keys])


def _at(depth: float) -> Callable[[int, int], int]:
    return lambda room, marker: int(depth * room)


def trained(subject: Subject) -> str:
    """Whether training had passkeys in it, without which a small model is not expected to find any."""
    share = (subject.config.get("data") or {}).get("passkey") or 0
    if share:
        return f"Trained with passkeys in {share:.0%} of the rows (data.passkey)"
    return "No passkeys in training, so a small model is expected at chance; data.passkey=0.1 mixes some in"
