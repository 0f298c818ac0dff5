"""Passkeys in training rows: which rows, where in them, and what they leave alone."""

import re

import numpy as np
import pytest

import newllm
from newllm.config import signature
from newllm.data import Dataset
from newllm.errors import ConfigError
from tests.support.corpora import FACTS, Load

KEY = re.compile(r"<<PASS:(\d-\d-\d-\d-\d)>>")


def rows(data: Dataset) -> np.ndarray:
    """Tokens of the training rows of the stream [rows, T + 1]."""
    inputs, labels = data.train.arrays(np.arange(len(data.train.starts)))
    assert np.array_equal(inputs[:, 1:], labels[:, :-1])
    return np.column_stack((inputs, labels[:, -1]))


def test_a_share_of_the_rows_holds_a_key_twice(load: Load) -> None:
    plain, mixed = rows(load()), load(passkey=0.3)
    changed = np.flatnonzero((rows(mixed) != plain).any(axis=1))
    assert mixed.counts["data/passkey_rows"] == len(changed)
    assert 0.2 * len(plain) < len(changed) < 0.4 * len(plain)
    keys = set()
    for index in changed:
        text = mixed.tokenizer.decode(rows(mixed)[index].tolist())
        first, second = KEY.findall(text)
        assert first == second
        assert text.endswith(f"<<PASS:{second}>>")
        keys.add(first)
        marker = mixed.tokenizer.encode(f"<<PASS:{first}>>")
        row, own = rows(mixed)[index].tolist(), plain[index].tolist()
        before = next(i for i in range(65) if row[i : i + len(marker)] == marker)
        kept = 65 - 2 * len(marker)
        assert row[:before] + row[before + len(marker) : 65 - len(marker)] == own[:kept]
        assert int(0.1 * kept) <= before <= int(0.9 * kept) + 1
    assert len(keys) > 0.9 * len(changed)


def test_validation_facts_and_store_stay_as_they_are(load: Load) -> None:
    plain, mixed = load(FACTS), load(FACTS, passkey=1.0)
    every = np.arange(len(plain.val))
    assert all(np.array_equal(*pair) for pair in zip(plain.val.arrays(every), mixed.val.arrays(every), strict=True))
    assert np.array_equal(plain.train.inputs, mixed.train.inputs)
    assert mixed.counts["data/passkey_rows"] == len(mixed.train.starts) == len(mixed.train) - len(mixed.train.inputs)
    assert mixed.counts["data/train_tokens"] == plain.counts["data/train_tokens"]
    assert mixed.train.tokens.filename == plain.train.tokens.filename
    assert mixed.fingerprint != plain.fingerprint
    assert load(FACTS, passkey=0.0).fingerprint == plain.fingerprint
    assert plain.counts["data/passkey_rows"] == 0


def test_the_rows_depend_on_their_index_alone(load: Load) -> None:
    data, other = load(passkey=0.5, seed=1), load(passkey=0.5, seed=2)
    whole = data.train.arrays(np.arange(len(data.train)))
    some = np.array([7, 3, 11, 3])
    for batch, rows_of_all in zip(other.train.arrays(some), whole, strict=True):
        assert np.array_equal(batch, rows_of_all[some])
    fewer, more = load(passkey=0.2), load(passkey=0.6)
    assert fewer.train.passkeys is not None
    assert more.train.passkeys is not None
    assert (fewer.train.passkeys.chosen <= more.train.passkeys.chosen).all()


def test_a_share_outside_0_to_1_and_rows_without_room_are_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"data\.passkey must lie in \[0, 1\]"):
        load(passkey=1.2)
    with pytest.raises(ConfigError, match=r"data\.passkey .* type seq_len=\d+"):
        load(passkey=0.1, seq_len=24)


def test_the_share_is_part_of_a_runs_signature() -> None:
    assert signature(newllm.compose(["data.passkey=0.1"])) != signature(newllm.compose([]))
