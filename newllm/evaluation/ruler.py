"""Small long-context tasks after RULER, answered by the likelihood of candidates."""

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from newllm.data import Dataset
from newllm.data.passkey_rows import encode_questions
from newllm.errors import ConfigError
from newllm.evaluation.limits import check_lengths, require_positive
from newllm.evaluation.retrieval import Retrieval, Trial, generator, summarize
from newllm.evaluation.subject import Table
from newllm.model import LanguageModel
from newllm.suggest import did_you_mean

MOST_KEYS = 8  # two hops need three of the 26 letters per key
_LETTERS = np.array(list(string.ascii_uppercase))
_TOKENS_A_WORD = 8  # of a row; a word takes at most five, the rest is filler


@dataclass(frozen=True)
class Puzzle:
    """statements: in the order of the text. query: the end of the text. answers: the right one first."""

    statements: list[str]
    query: str
    answers: list[str]


def needle(random: np.random.Generator, keys: int, length: int) -> Puzzle:
    """``<<K:7>>``, questions for by ``<<K:``; the candidates are all ten digits, of which the text contains one."""
    digits = random.permutation(10)
    key = random.choice(_LETTERS)
    return Puzzle([f"<<{key}:{digits[0]}>>"], f"<<{key}:", [str(digit) for digit in digits])


def chains(random: np.random.Generator, keys: int, length: int, hops: int) -> Puzzle:
    """`keys` chains, with two hops ``<<A:7>>`` … ``<<B:A>>`` … ``<<C:B>>``; the candidates are their digits.

    Chains are interleaved at random, each in its own order. The query is that of the first chain: ``<<value of C:``, or
    ``<<A:`` if there are no hops.
    """
    links = random.permutation(_LETTERS)[: keys * (hops + 1)].reshape(keys, hops + 1).tolist()
    digits = [str(digit) for digit in random.permutation(10)[:keys]]
    left = [
        [f"<<{letter}:{value}>>" for letter, value in zip(chain, [digit, *chain], strict=False)]
        for chain, digit in zip(links, digits, strict=True)
    ]
    turns = random.permutation(np.repeat(np.arange(keys), hops + 1))
    last = links[0][-1]
    return Puzzle([left[chain].pop(0) for chain in turns], f"<<value of {last}:" if hops else f"<<{last}:", digits)


def frequent_word(random: np.random.Generator, keys: int, length: int) -> Puzzle:
    """``<<A>>`` … ``<<C>>`` …, one word per 8 tokens of the row, questions for by ``<<most frequent:``.

    One of the `keys` letters is at least twice as frequent as the others on average; the candidates are these letters.
    """
    letters = random.permutation(_LETTERS)[:keys].tolist()
    count = max(keys + 1, length // _TOKENS_A_WORD)
    first = ceil(2 * count / (keys + 1))
    others = [letters[1 + i % (keys - 1)] for i in range(count - first)]
    words = random.permutation([letters[0]] * first + others)
    return Puzzle([f"<<{word}>>" for word in words], "<<most frequent:", letters)


TASKS: dict[str, Callable[[np.random.Generator, int, int], Puzzle]] = {
    "needle": needle,
    "multi_key_needle": partial(chains, hops=0),
    "one_hop": partial(chains, hops=1),
    "two_hops": partial(chains, hops=2),
    "frequent_word": frequent_word,
}


class Ruler(Retrieval):
    """Five tasks after RULER (Hsieh et al. 2024, arXiv 2404.06654), simple enough for small models.

    A row is filler with statements at random places, a query, and an answer. needle and multi_key_needle find a key's
    digit, one_hop and two_hops follow names to a digit, frequent_word counts. Needles have keys, so that a
    query has one answer.

    The model chooses among candidates: the one with the lowest mean nats per token. A candidate is a digit or a letter,
    a single token in a byte-level BPE, so that this is its log-probability. Except for needle, whose candidates are all
    ten digits, all candidates occur in the text, so copying any of them is at chance. ``ruler/<task>@N``: share of
    trials in which the right candidate wins; the model reads N tokens. tables/ruler.csv adds chance (1 / candidates),
    margin (mean nats per token of the wrong candidates − those of the right one) and Wilson's 95 % interval of the
    share.

    Filler is validation text from a different place in each trial. lengths: tokens, or multiples of the training
    length. keys: number of needles, chains or words to count. seed: of the trials, which are the same for all runs with
    the same text and tokenizer, whatever the run's seed.
    """

    name, title = "ruler", "Small RULER tasks"

    def __init__(
        self,
        lengths: list[int | str] = ["1x", "2x", "4x"],  # noqa: B006 (only read)
        tasks: list[str] = ["needle", "multi_key_needle", "one_hop", "two_hops", "frequent_word"],  # noqa: B006
        trials: int = 50,
        keys: int = 4,
        seed: int = 0,
    ):
        check_lengths(lengths, "eval.ruler.lengths")
        if not lengths or not tasks:
            raise ConfigError("eval.ruler needs a length and a task, as in 'lengths=[1x,2x]' and 'tasks=[needle]'.")
        for task in tasks:
            if task not in TASKS:
                raise ConfigError(f"eval.ruler.tasks: there is no {task}; {did_you_mean(task, list(TASKS))}.")
        if not 2 <= keys <= MOST_KEYS:
            raise ConfigError(f"eval.ruler.keys must be from 2 to {MOST_KEYS}, as in eval.ruler.keys=4; got {keys}.")
        require_positive("eval.ruler", trials=trials)
        self.lengths, self.tasks, self.trials, self.keys, self.seed = lengths, tasks, trials, keys, seed

    def rounds(self, data: Dataset, model: LanguageModel, lengths: list[int]) -> Iterator[list[Trial]]:
        for task in self.tasks:
            for length in lengths:
                yield [self._trial(task, data, length, number) for number in range(self.trials)]

    def _trial(self, task: str, data: Dataset, length: int, number: int) -> Trial:
        random = generator(self.seed, "ruler", task, length, number)
        puzzle = TASKS[task](random, self.keys, length)
        questions = encode_questions(data.tokenizer, puzzle.query, *puzzle.answers)
        statements = [data.tokenizer.encode(statement) for statement in puzzle.statements]
        labels = {"task": task, "length": length, "chance": 1 / len(questions)}

        def place(count: int) -> list[int]:
            return sorted(random.integers(1, count + 1, size=len(statements)).tolist())  # a token of filler comes first

        return self.trial(labels, data, statements, questions, task, place, random)

    def metric_end(self, labels: dict[str, Any]) -> str:
        return f"/{labels['task']}@{labels['length']}"

    def report(self, judged: list[dict[str, Any]], seq_len: int) -> tuple[dict[str, float], Table, list[str | Table]]:
        columns = ("task", "length", "accuracy", "chance", "trials", "margin", "low", "high")
        summary = summarize(judged, "task", "length", "chance")
        metrics = {f"ruler/{row['task']}@{row['length']}": row["accuracy"] for row in summary}
        screen: dict[str, dict[str, Any]] = {}
        for row in summary:
            line = screen.setdefault(row["task"], {"task": row["task"], "chance": row["chance"]})
            above = " *" if row["low"] > row["chance"] else ""
            line[f"{row['length']:,} tokens"] = f"{row['accuracy']:.2f}{above}"
        return metrics, [{column: row[column] for column in columns} for row in summary], [
            list(screen.values()),
            f"Accuracy of {self.trials} trials: the right candidate is the most likely; chance is 1 / candidates; * "
            "the 95 % interval is above chance",
        ]  # fmt: skip
