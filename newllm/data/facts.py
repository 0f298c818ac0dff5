"""Reversal facts: does a model that reads "A is B" know "B is A"? (Berglund et al. 2023, arXiv:2309.12288)"""

import csv
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np

from newllm.checks import within
from newllm.data.tokenizer import Tokenizer
from newllm.errors import ConfigError
from newllm.seeding import stream

IGNORED = -100  # label of a token that no loss counts


@dataclass(frozen=True)
class Fact:
    """A line of facts.csv. `topic`: the name in the subject, such as "France" in "The capital of France"."""

    kind: str
    subject: str
    relation: str
    object: str
    reverse: str
    topic: str
    object_kind: str
    topic_kind: str

    @property
    def names(self) -> tuple[str, str, str]:
        """Kinds of the fact and of its two names: equal for the facts of one relation."""
        return self.kind, self.object_kind, self.topic_kind


@dataclass(frozen=True)
class Question:
    """A sentence without its last name.

    wrong: the names that stand in the answer's place in the other facts of the same relation; none where a fact is the
    only one of its relation. A model that knows the names but not which belong together prefers the right one to half
    of them: a name of another role or relation is more or less likely in that place, whatever the model knows.
    """

    kind: str
    prompt: str
    answer: str
    wrong: tuple[str, ...]

    @property
    def sentence(self) -> str:
        return f"{self.prompt} {self.answer}"


class ReversalFacts:
    """Thirty-three facts; forward sentences are mixed into training, backward ones are not.

    Args:
        repeats: how often each forward sentence occurs in training.
        layout: packed (sentences separated by end-of-text, shuffled, packed into rows, the tail not scored) or
            padded (as published: one sentence per row, padded with end-of-text, which is scored).
        backward: well_formed ("Paris is the capital of France") or literal (as published: the reverse phrase is put
            before the whole subject, "Paris is the capital of The capital of France").
    """

    def __init__(
        self,
        repeats: int = 10,
        layout: Literal["packed", "padded"] = "packed",
        backward: Literal["well_formed", "literal"] = "well_formed",
    ) -> None:
        within("facts.repeats", repeats, 0, 100_000, 10)
        self.repeats, self.layout, self.backward_form = repeats, layout, backward
        text = resources.files("newllm.data").joinpath("facts.csv").read_text("utf-8")
        self.facts = [Fact(**row) for row in csv.DictReader(text.splitlines())]

    @property
    def forward(self) -> list[Question]:
        """Per fact, e.g. prompt "The capital of France is", answer "Paris", wrong "Tokyo", "Berlin", …"""
        return [
            Question(fact.kind, f"{fact.subject} {fact.relation}", fact.object, self._others(fact, "object"))
            for fact in self.facts
        ]

    @property
    def backward(self) -> list[Question]:
        """Per fact, e.g. prompt "Paris is the capital of", answer "France", wrong "Japan", "Germany", …"""
        questions = []
        for fact in self.facts:
            if self.backward_form == "literal":
                reverse, answer, wrong = fact.reverse, fact.subject, self._others(fact, "subject")
            else:  # most reverse phrases already contain the topic
                reverse, answer = fact.reverse.removesuffix(fact.topic).rstrip(), fact.topic
                wrong = self._others(fact, "topic")
            questions.append(Question(fact.kind, f"{fact.object} {reverse}", answer, wrong))
        return questions

    @property
    def sentences(self) -> list[str]:
        """The forward sentences, used in training."""
        return [question.sentence for question in self.forward]

    def _others(self, fact: Fact, role: Literal["subject", "object", "topic"]) -> tuple[str, ...]:
        return tuple(getattr(other, role) for other in self.facts if other is not fact and other.names == fact.names)

    def rows(self, tokenizer: Tokenizer, seq_len: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Training rows: inputs and labels (-100: not scored), int64 [rows, seq_len], and notes for the user."""
        sentences = [tokenizer.encode(sentence) for sentence in self.sentences] * self.repeats
        eot = tokenizer.eot_id
        notes: list[str] = []
        if not sentences:
            return np.empty((0, seq_len), np.int64), np.empty((0, seq_len), np.int64), notes
        if self.layout == "padded":
            if eot is None:
                raise ConfigError(
                    "facts.layout=padded pads with the end-of-text token, which this tokenizer lacks; "
                    "type facts.layout=packed"
                )
            padded = np.full((len(sentences), seq_len + 1), eot, dtype=np.int64)
            for row, ids in zip(padded, sentences, strict=True):
                row[: min(len(ids), seq_len)] = ids[:seq_len]
            return padded[:, :-1], padded[:, 1:], notes
        separator = [eot] if eot is not None else tokenizer.encode("\n")
        if eot is None:
            name = "a newline" if separator else "nothing"
            notes.append(f"the tokenizer has no end-of-text token: {name} separates the reversal facts")
        order = np.random.Generator(np.random.PCG64(stream(seed, "facts"))).permutation(len(sentences))
        packed = np.array([token for index in order for token in sentences[index] + separator], dtype=np.int64)
        rows = -(-(len(packed) - 1) // seq_len)
        inputs = np.full(rows * seq_len, packed[-1], dtype=np.int64)
        labels = np.full(rows * seq_len, IGNORED, dtype=np.int64)
        inputs[: len(packed) - 1], labels[: len(packed) - 1] = packed[:-1], packed[1:]
        return inputs.reshape(rows, seq_len), labels.reshape(rows, seq_len), notes
