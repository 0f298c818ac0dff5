"""Tokenizers: the same on every machine, exact in bytes."""

import os
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from newllm.data import vocab_size
from newllm.data.tokenizer import Tokenizer, pretrained, train_bpe
from newllm.errors import ConfigError
from tests.support.corpora import Load


@pytest.fixture(scope="module")
def auto(texts: list[str]) -> Tokenizer:
    return train_bpe(iter(texts[:8]), 512)


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.text(alphabet=" \n\tdef_é→😀"))
def test_bytes_of_ids_sum_to_the_text(auto: Tokenizer, text: str) -> None:
    ids = auto.encode(text)
    assert int(auto.token_bytes[ids].sum()) == len(text.encode())
    assert auto.decode(ids) == text


def test_end_of_text_in_a_text_is_only_text(auto: Tokenizer) -> None:
    assert auto.eot_id is not None
    assert auto.eot_id not in auto.encode("a <|endoftext|> b")
    assert auto.token_bytes[auto.eot_id] == 0


def test_added_tokens_count_their_own_bytes(auto: Tokenizer) -> None:
    """As in GPT-NeoX, whose runs of spaces are added tokens."""
    backend = tokenizers.Tokenizer.from_str(auto.backend.to_str())
    backend.add_tokens([tokenizers.AddedToken(" " * n, normalized=False) for n in range(2, 25)])
    tokenizer = Tokenizer(backend, 600, auto.eot)
    text = "def f():\n" + " " * 24 + "return 1\n" + " " * 7 + "é"
    ids = tokenizer.encode(text)
    assert max(ids) >= 512
    assert int(tokenizer.token_bytes[ids].sum()) == len(text.encode())


def test_two_trainings_agree_and_are_cached(load: Load, tmp_path: Path) -> None:
    first = load(cache=tmp_path / "a").tokenizer
    second = load(cache=tmp_path / "b").tokenizer
    assert first.backend.to_str() == second.backend.to_str()
    (folder,) = [path for path in (tmp_path / "a" / "tokenizers").iterdir() if path.is_dir()]
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    load(cache=tmp_path / "a", samples=100)  # another store, the same tokenizer
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before


def test_vocabulary_is_known_before_any_text_is_read() -> None:
    assert vocab_size({"tokenizer": "auto", "vocab_size": 4096}) == 4096


def test_a_vocabulary_larger_than_the_text_keeps_its_size(load: Load) -> None:
    data = load(vocab_size=60_000)
    assert data.tokenizer.vocab_size == len(data.tokenizer.token_bytes) == 60_000


@pytest.fixture(scope="module")
def folder_of_a_tokenizer(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts[:4], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    return folder


def test_folder_of_a_hugging_face_tokenizer(load: Load, folder_of_a_tokenizer: Path, texts: list[str]) -> None:
    import transformers

    reference = transformers.AutoTokenizer.from_pretrained(folder_of_a_tokenizer)
    data = load(tokenizer=str(folder_of_a_tokenizer))
    assert data.tokenizer.vocab_size == len(reference)
    assert data.tokenizer.eot_id == reference.eos_token_id
    assert data.tokenizer.encode(texts[0]) == reference.encode(texts[0], add_special_tokens=False)


def test_a_folder_without_a_tokenizer_is_refused(load: Load, tmp_path: Path) -> None:
    """transformers invents an empty one from a model's config.json alone."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data\.tokenizer=.* has no tokenizer\.json"):
        load(tokenizer=str(tmp_path))


@pytest.mark.skipif("NEWLLM_TEST_TOKENIZER" not in os.environ, reason="NEWLLM_TEST_TOKENIZER names no tokenizer folder")
def test_a_real_tokenizer_is_exact_in_bytes(tmp_path: Path, texts: list[str]) -> None:
    tokenizer = pretrained(os.environ["NEWLLM_TEST_TOKENIZER"], tmp_path)
    for text in texts:
        assert int(tokenizer.token_bytes[tokenizer.encode(text)].sum()) == len(text.encode())
