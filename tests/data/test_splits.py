"""What validates: nothing that trains, by default; as published, when asked for."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm.data import Dataset, Rows
from newllm.data.corpora.text_files import TextFiles
from newllm.data.split import Survey, choose_validation, hash_order, leading, survey
from newllm.data.tokenizer import train_bpe
from tests.support.corpora import FACTS, Load, write_jsonl


def decoded(data: Dataset, rows: Rows) -> str:
    """All text of the rows: they follow one another in the stream."""
    inputs, _ = rows.arrays(np.arange(len(rows.starts)))
    return data.tokenizer.decode(inputs.reshape(-1).tolist())


def documents_in(text: str) -> list[str]:
    return [part for part in text.split("<|endoftext|>") if part]


def test_no_document_on_both_sides(load: Load, texts: list[str]) -> None:
    data = load(samples=None)
    train, val = decoded(data, data.train), decoded(data, data.val)
    # Whole documents but the last of each side, whose tail does not fill a row.
    assert set(documents_in(train)[:-1]) <= set(texts)
    assert set(documents_in(val)[:-1]) <= set(texts)
    heads = {text[:200]: text for text in texts}
    assert len(heads) == len(texts)
    assert all((head in train) != (head in val) for head in heads)
    assert data.counts["data/val_documents_in_train_share"] == 0


def test_equal_documents_fall_on_one_side(load: Load, texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    write_jsonl(path, texts * 2)
    data = load(path=path, samples=None)
    train, val = decoded(data, data.train), decoded(data, data.val)
    for text in texts:
        assert (text[:200] in train) != (text[:200] in val)


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10_000)), min_size=2, max_size=60),
    fraction=st.floats(0.01, 0.9),
)
def test_each_side_gets_a_document(documents: list[tuple[int, int]], fraction: float) -> None:
    sizes = dict(documents)  # equal hashes are equal documents, of one size
    survey_of_documents = Survey(
        np.array([name for name, _ in documents], dtype=np.uint64), np.array([sizes[name] for name, _ in documents])
    )
    if len(np.unique(survey_of_documents.hashes)) < 2:
        return
    chosen = choose_validation(survey_of_documents, fraction)
    assert 0 < chosen.sum() < len(chosen)
    assert not set(survey_of_documents.hashes[chosen]) & set(survey_of_documents.hashes[~chosen])


def test_a_single_document_splits_by_rows_and_says_so(load: Load, texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("".join(texts[:8]))
    data = load(path=path, samples=None)
    assert any("single document" in note for note in data.notes)
    assert data.val.starts[0] == data.train.starts[-1] + 64
    assert data.counts["data/val_documents_in_train_share"] == 1


def test_contiguous_validates_the_end_of_the_stream(load: Load) -> None:
    data = load(split="contiguous")
    assert data.train.starts.tolist() == [64 * row for row in range(180)]
    assert data.val.starts.tolist() == [64 * row for row in range(180, 200)]


def test_chunks_are_the_published_permutation_and_warn(load: Load) -> None:
    data = load(split="chunks")
    published = torch.randperm(200, generator=torch.Generator().manual_seed(42)).numpy() * 64
    assert data.train.starts.tolist() == published[:180].tolist()
    assert data.val.starts.tolist() == published[180:].tolist()
    share = data.counts["data/val_documents_in_train_share"]
    assert share > 0.5
    assert any("leak" in note and f"{share:.0%}" in note for note in data.notes)
    assert load(split="chunks", split_seed=7).val.starts.tolist() != data.val.starts.tolist()


def test_share_of_leaked_documents_counts_by_hand(load: Load) -> None:
    data = load(split="chunks")
    stream = data.train.tokens[: 200 * 64]
    document = np.concatenate([[0], np.cumsum(stream == data.tokenizer.eot_id)[:-1]])
    of_row = {start: set(document[start : start + 64]) for start in range(0, 200 * 64, 64)}
    trained = set().union(*(of_row[start] for start in data.train.starts))
    validated = set().union(*(of_row[start] for start in data.val.starts))
    assert data.counts["data/val_documents_in_train_share"] == len(trained & validated) / len(validated)


@pytest.mark.parametrize("split", ["document", "contiguous", "chunks"])
def test_samples_are_exact_and_labels_shifted(load: Load, split: str) -> None:
    data = load(split=split, samples=157)
    assert (len(data.train), len(data.val)) == (142, 15)  # validation is int(0.1 * 157)
    for rows in (data.train, data.val):
        inputs, labels = rows.batch(np.arange(len(rows)))
        assert inputs.dtype == labels.dtype == torch.int64
        assert inputs.shape == labels.shape == (len(rows), 64)
        assert torch.equal(inputs[:, 1:], labels[:, :-1])
        following = torch.from_numpy(rows.tokens[rows.starts + 64].astype(np.int64))
        assert torch.equal(labels[:, -1], following)


def test_tokens_take_the_place_of_samples(load: Load) -> None:
    data = load(tokens=6500)
    assert len(data.train) + len(data.val) == 101  # 6500 // 64


def test_one_seed_means_one_sequence_of_batches(load: Load) -> None:
    def digest(data: Dataset, seed: int) -> str:
        sha = hashlib.sha256()
        for epoch in range(2):
            order = data.order(seed, epoch)
            for first in range(0, len(order), 8):
                for tensor in data.train.batch(order[first : first + 8]):
                    sha.update(tensor.numpy().tobytes())
        return sha.hexdigest()

    facts = FACTS
    one, again, other = load(facts, seed=3), load(facts, seed=3), load(facts, seed=4)
    assert one.fingerprint == again.fingerprint
    assert digest(one, 3) == digest(again, 3)
    assert digest(one, 3) != digest(one, 4)
    assert sorted(one.order(3, 0)) == list(range(len(one.train)))
    assert one.order(3, 0).tolist() != one.order(3, 1).tolist()
    assert one.val.starts.tolist() == other.val.starts.tolist()  # the seed never chooses what validates
    assert one.val.tokens.tobytes() == other.val.tokens.tobytes()


def test_a_smaller_budget_is_the_beginning_of_a_larger_one(load: Load) -> None:
    small, large = load(samples=50), load(samples=200)
    assert np.array_equal(small.train.tokens, large.train.tokens[: len(small.train.tokens)])
    assert np.array_equal(small.val.tokens, large.val.tokens[: len(small.val.tokens)])


def test_tokenizer_never_sees_validation_text(load: Load, corpus: Path, tmp_path: Path) -> None:
    """Another validation document, no other tokenizer."""
    data = load(samples=None)
    val = decoded(data, data.val)
    lines = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    kept = [text for text in lines if text[:200] not in val]
    # The training documents alone, with the sides chosen as before, would give the same vocabulary.
    documents = survey(TextFiles(path=str(write_jsonl(tmp_path / "train.jsonl", kept))))
    chosen = leading(hash_order(documents, np.ones(len(kept), dtype=bool)), documents.sizes, 100_000)
    alone = train_bpe((kept[number] for number in sorted(chosen)), 512)
    assert alone.backend.get_vocab() == data.tokenizer.backend.get_vocab()


@pytest.mark.parametrize("split", ["document", "contiguous"])
def test_validation_text_is_one_run_of_tokens(load: Load, split: str) -> None:
    data = load(split=split)
    inputs, labels = data.val.arrays(np.arange(len(data.val)))
    assert data.val_tokens.tolist() == [*inputs.reshape(-1).tolist(), int(labels[-1, -1])]
    assert np.shares_memory(data.val_tokens, data.val.tokens)
