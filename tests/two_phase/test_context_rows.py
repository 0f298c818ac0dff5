"""One side of a corpus as rows that follow one another."""

import numpy as np
import pytest
import torch

from newllm.data.dataset import Rows
from newllm.two_phase.context_rows import ContextRows, StreamRows

TOKENS = np.arange(100, 111, dtype=np.uint16)  # 11 tokens, 10 labels


@pytest.mark.parametrize(("seq_len", "rows"), [(4, 3), (5, 2), (10, 1), (16, 1), (1, 10)])
def test_every_label_is_scored_once_and_in_order(seq_len: int, rows: int) -> None:
    found = StreamRows(TOKENS, seq_len)
    inputs, labels = found.arrays(np.arange(len(found)))
    scored = labels != -100
    assert len(found) == rows
    assert found.scored == scored.sum() == 10
    assert labels[scored].tolist() == TOKENS[1:].tolist()
    assert inputs[scored].tolist() == TOKENS[:-1].tolist()
    assert inputs.min() >= 100  # what fills the last row up is a token, too


def test_places_lead_to_the_same_tokens_and_labels() -> None:
    tokens, places = StreamRows(TOKENS, 4), ContextRows(TOKENS, 4, torch.zeros(11, 1, 2), first=50)
    rows = np.array([2, 0])
    inputs, labels = tokens.arrays(rows)
    at, same = places.arrays(rows)
    assert (same == labels).all()
    assert (TOKENS[at - 50] == inputs).all()
    assert at.min() == 50


def test_a_stream_is_one_row_to_whom_all_of_it_is_context() -> None:
    whole = StreamRows(TOKENS, 4).joined()
    inputs, labels = whole.arrays(np.arange(len(whole)))
    assert (inputs.tolist(), labels.tolist()) == ([TOKENS[:-1].tolist()], [TOKENS[1:].tolist()])
    assert StreamRows(TOKENS, 4).joined(most=3).arrays(np.arange(1))[1].tolist() == [[101, 102, 103]]
    other = Rows(TOKENS, np.arange(2) * 5, 5)
    assert other.joined() is other
