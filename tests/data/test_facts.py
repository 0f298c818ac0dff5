"""Reversal facts: the published ones, their sentences and their training rows."""

from collections import Counter

import numpy as np
import pytest

from newllm.data.facts import ReversalFacts
from newllm.errors import ConfigError
from tests.support.corpora import FACTS, Load

WELL_FORMED = """\
Paris is the capital of France
Tokyo is the capital of Japan
Berlin is the capital of Germany
Rome is the capital of Italy
Madrid is the capital of Spain
Beijing is the capital of China
Moscow is the capital of Russia
Brasilia is the capital of Brazil
Canberra is the capital of Australia
Ottawa is the capital of Canada
Alexander Graham Bell invented the telephone
Thomas Edison invented the light bulb
the Wright brothers invented the airplane
Johannes Gutenberg invented the printing press
James Watt improved the steam engine
William Shakespeare wrote Hamlet
Jane Austen wrote Pride and Prejudice
George Orwell wrote 1984
F. Scott Fitzgerald wrote The Great Gatsby
Leo Tolstoy wrote War and Peace
Alexander Fleming discovered penicillin
Isaac Newton discovered gravity
Marie Curie discovered radioactivity
Watson and Crick discovered DNA structure
Bill Gates founded Microsoft
Steve Jobs founded Apple
Jeff Bezos founded Amazon
Elon Musk founded Tesla
The Crimson Dawn was written by Zephyr Moonstone
the quantum compass was invented by Aria Windfall
King Aldric rules the city of Luminara
element Novarite was discovered by Professor Thorne
Lady Elara founded the Silverbrook Academy""".splitlines()


def test_thirty_three_facts_of_the_published_kinds() -> None:
    kinds = Counter(fact.kind for fact in ReversalFacts().facts)
    assert kinds == {"capital": 10, "inventor": 5, "author": 5, "discoverer": 4, "founder": 4, "synthetic": 5}


def test_well_formed_backward_sentences() -> None:
    assert [question.sentence for question in ReversalFacts().backward] == WELL_FORMED


def test_literal_backward_sentences_are_the_published_ones() -> None:
    literal = [question.sentence for question in ReversalFacts(backward="literal").backward]
    assert literal[0] == "Paris is the capital of The capital of France"
    assert literal[11] == "Thomas Edison invented the light bulb The inventor of the light bulb"
    assert literal[30] == "King Aldric rules the city of Luminara The city of Luminara"
    assert literal[32] == "Lady Elara founded the Silverbrook Academy The Silverbrook Academy"
    assert sum(one != two for one, two in zip(literal, WELL_FORMED, strict=True)) == 30


def test_forward_sentences() -> None:
    sentences = ReversalFacts().sentences
    assert len(set(sentences)) == 33
    assert sentences[0] == "The capital of France is Paris"
    assert sentences[27] == "The founder of Tesla is Elon Musk"
    assert sentences[30] == "The city of Luminara is ruled by King Aldric"
    assert sentences[32] == "The Silverbrook Academy was founded by Lady Elara"


@pytest.mark.parametrize("backward", ["well_formed", "literal"])
def test_wrong_names_have_the_same_role_in_facts_of_the_same_relation(backward: str) -> None:
    """So every pair of names is asked both ways, and a fixed preference among names gives an accuracy of 0.5."""
    facts = ReversalFacts(backward=backward)  # type: ignore[arg-type]
    for questions in (facts.forward, facts.backward):
        for kind in {question.kind for question in questions} - {"synthetic"}:
            asked = [question for question in questions if question.kind == kind]
            answers = {question.answer for question in asked}
            assert len(answers) == len(asked) > 1
            assert all({*question.wrong} == answers - {question.answer} for question in asked)
        assert [question.wrong for question in questions if question.kind == "synthetic"] == [()] * 5
    hamlet = ReversalFacts().backward[15]
    assert (hamlet.prompt, hamlet.answer) == ("William Shakespeare wrote", "Hamlet")
    assert hamlet.wrong == ("Pride and Prejudice", "1984", "The Great Gatsby", "War and Peace")


def test_packed_rows_hold_every_sentence_and_score_no_padding(load: Load) -> None:
    data = load(FACTS)
    inputs, labels = data.train.arrays(np.arange(len(data.train.starts), len(data.train)))
    assert data.counts["data/fact_rows"] == len(inputs) < 330
    scored = labels.reshape(-1) != -100
    flat = inputs.reshape(-1)
    assert scored[: scored.sum()].all()  # only the tail is left out
    text = data.tokenizer.decode([flat[0], *labels.reshape(-1)[scored]])
    counts = Counter(text.split("<|endoftext|>")[:-1])
    assert counts == dict.fromkeys(ReversalFacts().sentences, 10)
    assert np.array_equal(flat[1:][scored[:-1]][: scored.sum() - 1], labels.reshape(-1)[scored][: scored.sum() - 1])
    assert data.counts["data/train_tokens"] == len(data.train.starts) * 64 + scored.sum()


def test_facts_never_validate(load: Load) -> None:
    assert load(FACTS).val.starts.tolist() == load().val.starts.tolist()
    assert len(load(FACTS).val.inputs) == 0


def test_padded_rows_are_as_published(load: Load) -> None:
    """One sentence a row; end-of-text to the end, scored; input t[:-1] and label t[1:], one more pad each."""
    data = load({**FACTS, "layout": "padded"})
    first = len(data.train.starts)
    assert len(data.train) - first == 330
    inputs, labels = data.train.arrays(np.arange(first, first + 330))
    eot = data.tokenizer.eot_id
    for row, sentence in enumerate(ReversalFacts().sentences * 10):
        ids = data.tokenizer.encode(sentence)
        padded = ids + [eot] * (64 - len(ids))
        assert inputs[row].tolist() == [*padded[:-1], eot]
        assert labels[row].tolist() == [*padded[1:], eot]


def test_without_end_of_text(load: Load) -> None:
    tokenizer = load().tokenizer
    tokenizer.eot_id = None
    inputs, _, notes = ReversalFacts(repeats=1).rows(tokenizer, 64, seed=1)
    assert len(notes) == 1
    assert "a newline separates" in notes[0]
    assert tokenizer.decode(inputs.reshape(-1).tolist()).count("\n") >= 32
    with pytest.raises(ConfigError, match="layout=packed"):
        ReversalFacts(layout="padded").rows(tokenizer, 64, seed=1)


def test_no_repeats_trains_no_fact(load: Load) -> None:
    data = load({**FACTS, "repeats": 0})
    assert data.counts["data/fact_rows"] == 0
    assert data.facts is not None
    with pytest.raises(ConfigError, match=r"facts\.repeats must lie in \[0, 100000\]"):
        ReversalFacts(repeats=-1)
