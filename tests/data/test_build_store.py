"""Encoding in parallel gives the ids of the tokenizer, in order and in bounded memory."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import newllm.data.build_store as build_store
from newllm.data import Tokenizer
from newllm.data.corpora.corpus import Piece
from newllm.data.tokenizer import train_bpe
from tests.support.corpora import Load

U16 = np.dtype(np.uint16)


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Tokenizer:
    return train_bpe(iter(texts[:8]), 512)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_store, "BATCH_CHARS", 1000)
    monkeypatch.setattr(build_store, "COPIED_TOKENS", 100)


@pytest.mark.usefixtures("small_batches")
def test_ids_are_the_tokenizers_in_the_order_of_the_pieces(tokenizer: Tokenizer, texts: list[str]) -> None:
    pieces = [(f"side {i % 3}", Piece(text)) for i, text in enumerate([*texts, "", "é\n", "<|endoftext|>", "日本 🙂"])]
    encoded = list(build_store._encoded(pieces, tokenizer, U16))
    assert [(side, piece) for side, piece, _, _ in encoded] == pieces
    for _, piece, ids, counts in encoded:
        assert counts is None
        assert ids.dtype == U16
        assert ids.tolist() == tokenizer.encode(piece.text)


@pytest.mark.usefixtures("small_batches")
def test_only_a_few_batches_are_read_ahead(tokenizer: Tokenizer) -> None:
    read = 0

    def pieces() -> Iterator[tuple[str, Piece]]:
        nonlocal read
        for _ in range(200):
            read += 1
            yield "train", Piece("word " * 20)  # ten of them are a batch

    for done, _ in enumerate(build_store._encoded(pieces(), tokenizer, U16)):
        assert read - done <= 50


@pytest.mark.usefixtures("small_batches")
def test_an_error_of_the_corpus_is_raised(tokenizer: Tokenizer, texts: list[str]) -> None:
    def pieces() -> Iterator[tuple[str, Piece]]:
        yield from [("train", Piece(text)) for text in texts[:3]]
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        list(build_store._encoded(pieces(), tokenizer, U16))


@pytest.mark.usefixtures("small_batches")
def test_a_forked_process_encodes_too(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Threads of `tokenizers` do not survive a fork; a worker forked from a process that has encoded must not hang."""
    pieces = [("train", Piece(text)) for text in texts[:4]]
    expected = [ids.tolist() for _, _, ids, _ in build_store._encoded(pieces, tokenizer, U16)]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=lambda: sender.send([ids.tolist() for _, _, ids, _ in build_store._encoded(pieces, tokenizer, U16)])
    )
    child.start()
    assert receiver.poll(60), "the forked process hangs"
    assert receiver.recv() == expected
    child.join(60)
    assert child.exitcode == 0


def test_a_store_is_the_same_whatever_the_batches(load: Load, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    large = load(samples=None, cache=tmp_path / "large")
    request.getfixturevalue("small_batches")
    small = load(samples=None, cache=tmp_path / "small")
    assert small.fingerprint == large.fingerprint
    assert np.array_equal(small.train.tokens, large.train.tokens)
