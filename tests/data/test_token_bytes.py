"""Bytes of text behind each token, counted in the text itself: whatever a tokenizer loses, changes or adds."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from newllm.data.build_store import Losses
from newllm.data.tokenizer import FILE, Tokenizer, pretrained, train_bpe
from newllm.errors import ConfigError
from tests.support.corpora import Load, write_jsonl

SPACE = "\u2581"
TEXT = "The birds fell.  Über 1,000 birds \u2014 e\u0301tude, 日本 🙂\n\tand\u00a0so "


def word_level() -> tokenizers.Tokenizer:
    words = ["[UNK]", "</s>", "birds", "fell", "so", "and"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def word_piece() -> tokenizers.Tokenizer:
    vocab = {"[UNK]": 0, "bird": 1, "##s": 2, "fell": 3, ".": 4, "so": 5, "[CLS]": 6, "</s>": 7}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 6)])
    return backend


def unigram() -> tokenizers.Tokenizer:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), (SPACE, -2.0), (f"{SPACE}birds", -3.0), *((c, -5.0) for c in "Tefilnds.")]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, 0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


def byte_fallback() -> tokenizers.Tokenizer:
    vocab = {token: i for i, token in enumerate(["</s>", SPACE, "a", *(f"<0x{b:02X}>" for b in range(256))])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return backend


def byte_level(**changes: object) -> tokenizers.Tokenizer:
    """A byte-level BPE with other parts."""
    texts = [TEXT * 20]
    backend = tokenizers.Tokenizer.from_str(train_bpe(texts, 280).backend.to_str())
    for name, part in changes.items():
        setattr(backend, name, part)
    return backend


def dropout() -> tokenizers.Tokenizer:
    spec = json.loads(byte_level().to_str())
    spec["model"]["dropout"] = 0.5
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def some_bytes_only() -> tokenizers.Tokenizer:
    spec = json.loads(byte_level().to_str())
    model = spec["model"]  # without ð, the first byte of every emoji, which is dropped in silence then
    model["vocab"] = {token: i for i, token in enumerate(token for token in model["vocab"] if "ð" not in token)}
    model["merges"] = [merge for merge in model["merges"] if "ð" not in "".join(merge)]
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


SPLIT = pre_tokenizers.Split(Regex(r"\s+"), "removed")
# Tokenizer -> whether its ids alone give the bytes, its traits, and what it loses of TEXT.
CASES = {
    "byte level": (byte_level, True, [], ""),
    "dropout": (dropout, True, ["draws its tokens at random (dropout 0.5), so another cache holds other tokens"], ""),
    "NFC": (lambda: byte_level(normalizer=normalizers.NFC()), False, [], "loses text (not all"),
    "lower case": (lambda: byte_level(normalizer=normalizers.Lowercase()), False, [], "loses text (not all"),
    "removed spaces": (
        lambda: byte_level(pre_tokenizer=pre_tokenizers.Sequence([SPLIT, pre_tokenizers.ByteLevel(False)])),
        False, [], "loses text (not all",
    ),
    "prefix space": (
        lambda: byte_level(pre_tokenizer=pre_tokenizers.ByteLevel(True)), False, ["adds a space before every text"], "",
    ),
    "some bytes only": (some_bytes_only, False, [], "loses text (not all"),
    "word level": (word_level, False, [], "loses text (68.75%"),
    "WordPiece": (word_piece, False, ["adds 1 token to a text by itself, left out here"], "loses text (63.16%"),
    "Unigram": (unigram, False, ["adds a space before every text"], "loses text ("),
    "byte fallback": (byte_fallback, False, ["adds a space before every text"], ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def built() -> dict[str, Tokenizer]:
    backends = {name: build() for name, (build, *_) in CASES.items()}
    return {name: Tokenizer(backend, backend.get_vocab_size(), None) for name, backend in backends.items()}


@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.text(alphabet="birds fel\n\té→😀\u0301"))
@example(text=TEXT)
def test_the_bytes_of_the_tokens_are_those_of_the_text(built: dict[str, Tokenizer], text: str) -> None:
    for name, tokenizer in built.items():
        ((ids, counts),) = tokenizer.encode_with_bytes([text])
        assert len(ids) == len(counts)
        assert (counts >= 0).all()
        assert counts.sum() == (len(text.encode()) if len(ids) else 0), name
        if name != "dropout":
            assert ids.tolist() == tokenizer.encode(text)
        if tokenizer.exact:
            assert tokenizer.token_bytes is not None
            assert counts.tolist() == tokenizer.token_bytes[ids].tolist()


@pytest.mark.parametrize("name", CASES)
def test_a_tokenizer_that_loses_text_draws_at_random_or_adds_tokens_says_so(
    name: str, built: dict[str, Tokenizer]
) -> None:
    _, exact, traits, losses = CASES[name]
    tokenizer, found = built[name], Losses()
    found.add(tokenizer, TEXT, tokenizer.encode_with_bytes([TEXT])[0][0])
    assert (tokenizer.exact, tokenizer.traits) == (exact, traits)
    assert str(found).startswith(losses)
    assert bool(str(found)) == bool(losses)


def test_tokens_stand_for_the_text_before_them_too(built: dict[str, Tokenizer]) -> None:
    ((ids, counts),) = built["word level"].encode_with_bytes(["  birds\u00e9 fell\n"])
    assert ids.tolist() == [0, 3]
    assert counts.tolist() == [2 + 5 + 2, 1 + 4 + 1]


@pytest.mark.parametrize("split", ["document", "contiguous", "chunks"])
def test_a_store_counts_the_bytes_of_its_validation_text(split: str, load: Load, tmp_path: Path) -> None:
    """Documents of other sizes, one of them without a single token."""
    backend = word_piece()
    backend.add_special_tokens(["</s>"])
    backend.save(str(tmp_path / FILE))
    texts = [*(f"{TEXT} {n} birds fell{' ' * (n % 7)}" for n in range(200)), "   "]
    data = load(
        path=write_jsonl(tmp_path / "text.jsonl", texts), tokenizer=str(tmp_path), split=split, samples=None,
        seq_len=16, min_chars=1, cache=tmp_path / "cache",
    )  # fmt: skip
    assert data.tokenizer.eot == "</s>"
    assert data.val.source is not None
    of_all = data.val.source.bytes_at(np.arange(len(data.val.tokens)))
    ends = np.cumsum(data.val.tokens == data.tokenizer.eot_id)
    per_document = np.bincount(ends - (data.val.tokens == data.tokenizer.eot_id), weights=of_all)
    sizes = {len(text.encode()) for text in texts}
    assert {int(size) for size in per_document[:-1]} <= sizes
    places = data.val.starts[:, None] + np.arange(1, 17)
    assert data.val_bytes == of_all[places].sum() == data.counts["data/bytes_per_token"] * places.size
    if split != "chunks":
        assert data.val.text_bytes(np.arange(1, len(data.val_tokens))).sum() == data.val_bytes
    assert data.tokenizer_notes == [
        f"loses text ({data.tokenizer_notes[0].partition('(')[2]}", "adds 1 token to a text by itself, left out here"
    ]  # fmt: skip


def test_a_tokenizer_is_taken_by_its_file_too(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / FILE))
    for name in (tmp_path, tmp_path / FILE):
        tokenizer = pretrained(str(name), tmp_path / "cache")
        assert tokenizer.eot == "<|endoftext|>"  # named by no tokenizer_config.json
        assert tokenizer.exact
    (tmp_path / FILE).rename(tmp_path / "mine.json")
    with pytest.raises(ConfigError, match=r"mine\.json is a file of another name than tokenizer\.json"):
        pretrained(str(tmp_path / "mine.json"), tmp_path / "cache")
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json could not be read"):
        pretrained(str(tmp_path / FILE), tmp_path / "cache")
