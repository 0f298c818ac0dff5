"""Encoding word by word and in other processes gives the very ids of the tokenizer."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

import newllm.data.encode as encoding
from newllm.data import Dataset
from newllm.data.encode import Texts, encode
from newllm.data.tokenizer import Tokenizer
from newllm.data.words import cutting
from newllm.errors import RunError

U16 = np.dtype(np.uint16)


@pytest.fixture(scope="module")
def plain(texts: list[str]) -> Tokenizer:
    from newllm.data.bpe import train_bpe

    return train_bpe(iter(texts[:8]), 512)


@pytest.fixture(scope="module")
def neox(plain: Tokenizer) -> Tokenizer:
    """With GPT-NeoX's normalizer, runs of spaces as tokens, and special tokens that are ordinary words."""
    backend = tokenizers.Tokenizer.from_str(plain.backend.to_str())
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([tokenizers.AddedToken(" " * n, normalized=True) for n in range(2, 25)])
    backend.add_special_tokens(["assistant", "<|pad|>"])
    return Tokenizer(backend, 600, plain.eot)


@pytest.fixture(scope="module", params=["plain", "neox", "runs of four and eight"])
def tokenizer(request: pytest.FixtureRequest, plain: Tokenizer, neox: Tokenizer) -> Tokenizer:
    if request.param == "plain":
        return plain
    if request.param == "neox":
        return neox
    backend = tokenizers.Tokenizer.from_str(plain.backend.to_str())
    backend.add_tokens([tokenizers.AddedToken(" " * n, normalized=False) for n in (4, 8)])
    return Tokenizer(backend, 600, plain.eot)


@pytest.fixture(scope="module")
def fast(tokenizer: Tokenizer) -> Texts:
    return Texts(tokenizer, U16)


def test_gpt2_like_tokenizers_are_cut_into_words(tokenizer: Tokenizer, fast: Texts, texts: list[str]) -> None:
    assert fast._words is not None
    for text, ids in zip(texts[:12], fast.encode(texts[:12]), strict=True):
        assert ids.tolist() == tokenizer.encode(text)
        assert ids.dtype == U16
    assert len(fast._words._known) < sum(map(len, texts[:12])) / 20  # words, not stretches of text


# Everything that the patterns tell apart: letters and marks in ASCII and outside, white space of all kinds (some of
# it only to one of the two regex engines), combining marks, contractions, special tokens.
PARTS = [
    "a",
    "Ab",
    "7",
    "'s",
    "'S",
    "'",
    "\u2019s",
    "...",
    "é",
    "e\u0301",
    "\u0308",
    "日本",
    "привет",
    "🙂",
    "½",
    "²",
    "_",
]
PARTS += [" ", "  ", "   ", " " * 25, "\n", "\r\n", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u2003", "\u200b"]
PARTS += ["\u180e", "\u3000", "\ufeff", "\0", "\x7f", "—", "“a”", "assistant", "<|pad|>", "<|endoftext|>", "\U00010400"]


@settings(max_examples=400, deadline=None)
@given(text=st.lists(st.sampled_from(PARTS), max_size=12).map("".join) | st.text())
def test_any_text_is_encoded_as_the_tokenizer_does(tokenizer: Tokenizer, fast: Texts, text: str) -> None:
    assert fast.encode([text])[0].tolist() == tokenizer.encode(text)


def test_memory_is_bounded(plain: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("newllm.data.words.KEPT", 50)
    texts_of = Texts(plain, U16)
    for text in [*texts[:4], "日本" * 100]:
        words = text[:200]
        assert texts_of.encode([words])[0].tolist() == plain.encode(words)
        assert texts_of._words is not None
        assert len(texts_of._words._known) <= 100
        assert max(map(len, texts_of._words._known), default=0) <= 64


@pytest.mark.parametrize("change", ["model", "split", "prefix", "normalizer", "added", "special with a space"])
def test_other_tokenizers_encode_whole_texts(plain: Tokenizer, change: str) -> None:
    backend = tokenizers.Tokenizer.from_str(plain.backend.to_str())
    if change == "model":
        backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    elif change == "split":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    elif change == "prefix":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "normalizer":
        backend.normalizer = normalizers.Lowercase()
    elif change == "added":
        backend.add_tokens(["b a"])
    else:
        backend.add_special_tokens(["b a"])
    other = Tokenizer(backend, 600, None)
    texts_of = Texts(other, U16)
    assert texts_of._words is None
    assert texts_of.encode(["ab a  Ab\n"])[0].tolist() == other.encode("ab a  Ab\n")


def test_a_pattern_cuts_nothing_away(neox: Tokenizer, texts: list[str]) -> None:
    pattern = cutting(neox.spec)
    assert pattern is not None
    for text in texts:
        assert "".join(pattern.findall(text)) == text


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_cores", lambda: 2)
    monkeypatch.setattr(encoding, "BATCH_BYTES", 1000)
    monkeypatch.setattr(encoding, "PATIENCE", 0)


@pytest.mark.usefixtures("two_processes")
def test_other_processes_answer_in_order(neox: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    neox.save(tmp_path)
    items = [(number, text[:3000]) for number, text in enumerate([*texts, "", "é\n"])]
    found = list(encode(items, neox, tmp_path, U16))
    assert [label for label, _ in found] == [label for label, _ in items]
    for (_, text), (_, encoded) in zip(items, found, strict=True):
        assert encoded.size == len(text.encode())
        assert encoded.ids.tolist() == neox.encode(text)


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.mark.usefixtures("two_processes")
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_a_killed_process_is_an_error_and_none_is_left(plain: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    plain.save(tmp_path)
    before = set(children())

    def items() -> Iterator[tuple[int, str]]:
        for number in range(1000):
            if number == 20:
                for pid in set(children()) - before:
                    os.kill(pid, signal.SIGKILL)
            yield number, texts[number % len(texts)][:2000]

    with pytest.raises(RunError, match="status -9"):
        list(encode(items(), plain, tmp_path, U16))
    assert set(children()) <= before


@pytest.mark.usefixtures("two_processes")
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_processes_end_when_nobody_listens(plain: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    plain.save(tmp_path)
    before = set(children())
    stream = encode(((0, text) for text in texts * 10), plain, tmp_path, U16)
    next(stream)
    while not set(children()) - before:
        next(stream)
    stream.close()
    assert set(children()) <= before


def test_a_store_is_the_same_however_it_was_encoded(
    load: Callable[..., Dataset], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    alone = load(samples=None, cache=tmp_path / "alone")
    request.getfixturevalue("two_processes")
    together = load(samples=None, cache=tmp_path / "together")
    assert together.fingerprint == alone.fingerprint
    assert np.array_equal(together.train.tokens, alone.train.tokens)
