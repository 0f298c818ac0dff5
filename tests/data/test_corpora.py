"""Every form of text that is read, and one sentence for each that cannot be."""

import gzip
import json
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import newllm
from newllm.build import build
from newllm.config import effective, signature
from newllm.data.corpora.corpus import Corpus
from newllm.data.corpora.hub import Hub
from newllm.data.corpora.stdlib import Stdlib
from newllm.data.corpora.text_files import PIECE_CHARS, TextFiles
from newllm.errors import ConfigError
from tests.support.corpora import HUB, Load, write_jsonl

STDLIB = Path(sysconfig.get_path("stdlib"))


def documents(data: TextFiles | Hub | Stdlib) -> list[str]:
    whole, parts = [], []
    for text, last in data.pieces():
        parts.append(text)
        if last:
            whole.append("".join(parts))
            parts = []
    assert not parts
    return whole


def test_stdlib_leaves_tests_out() -> None:
    import argparse

    texts = documents(Stdlib())
    assert Path(argparse.__file__).read_text("utf-8") in texts
    assert len(texts) > 300
    assert not any("class MixinStrUnicodeUserStringTest" in text for text in texts)  # in test/


def test_stdlib_without_what_is_excluded() -> None:
    everything, remaining = Stdlib(), Stdlib(exclude=["encodings/*", "abc.py"])
    texts, remaining_texts = documents(everything), documents(remaining)
    excluded = set(texts) - set(remaining_texts)
    assert any("Python Character Mapping Codec cp1252" in text for text in excluded)
    assert len(texts) == len(remaining_texts) + len(list((STDLIB / "encodings").glob("*.py"))) + 1
    assert everything.fingerprint() != remaining.fingerprint()
    with pytest.raises(ConfigError, match=r"data\.exclude="):
        Stdlib(exclude=["*"])


def test_stdlib_is_in_one_order_and_named_without_its_place() -> None:
    assert Stdlib().fingerprint() == Stdlib().fingerprint()
    assert documents(Stdlib())[:5] == documents(Stdlib())[:5]


def test_the_library_of_another_python_is_another_text() -> None:
    run = effective(newllm.compose())
    assert run["data"]["python"] == platform.python_version()
    other = {**run, "data": {**run["data"], "python": "3.10.1"}}
    assert signature(run) != signature(other)
    with pytest.raises(ConfigError, match=r"data\.python=3\.10\.1: this is Python"):
        build(other["data"], Corpus)


def test_all_kinds_of_files_in_a_folder(tmp_path: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text(texts[0])
    write_jsonl(tmp_path / "b.jsonl", texts[1:3])
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"text": texts[3]}) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[4:6], "n": [1, 2]}), tmp_path / "d.parquet")
    (tmp_path / "sub" / "e.txt").write_text(texts[6])
    (tmp_path / "ignored.md").write_text("# not text")
    (tmp_path / ".hidden.txt").write_text("no")
    assert documents(TextFiles(path=str(tmp_path))) == texts[:7]


def test_a_large_file_comes_in_pieces_of_one_document(tmp_path: Path, texts: list[str]) -> None:
    text = "".join(texts) * 6
    assert len(text) > 2 * PIECE_CHARS
    path = tmp_path / "large.txt"
    path.write_text(text)
    pieces = list(TextFiles(path=str(path)).pieces())
    assert len(pieces) > 2
    assert max(len(piece.text) for piece in pieces) <= 2 * PIECE_CHARS
    assert all(piece.text.endswith("\n") for piece in pieces)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert documents(TextFiles(path=str(path))) == [text]


def test_a_long_line_comes_in_pieces_of_one_document(tmp_path: Path, texts: list[str]) -> None:
    text = " ".join(" ".join(texts).split()) * 8
    data = TextFiles(path=str(write_jsonl(tmp_path / "long.jsonl", [text, "short"])))
    pieces = list(data.pieces())
    assert len(text) > 2 * PIECE_CHARS
    assert max(len(piece.text) for piece in pieces) <= 2 * PIECE_CHARS
    assert all(piece.text.startswith(" ") for piece in pieces[1:-1])
    assert documents(data) == [text, "short"]


def test_keys_short_documents_and_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"body": "' + "y" * 100 + '"}\n{"body": "' + "z" * 99 + '"}\n{"body": ""}\n')
    assert documents(TextFiles(path=str(path), text_key="body", min_chars=100)) == ["y" * 100]
    path.write_text('{"text": "half a pair \\ud800 here"}\n')
    assert documents(TextFiles(path=str(path))) == ["half a pair ? here"]


def test_an_unwritable_cache_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot be written .*runtime\.cache_dir=FOLDER"):
        load(cache=tmp_path / "file")


def test_hub_set_in_a_local_folder(load: Load, tmp_path: Path, texts: list[str]) -> None:
    """The hub's layout: one file for each split; documents come in order, sides by the hash of their content."""
    write_jsonl(tmp_path / "train.jsonl", texts, n=1)
    write_jsonl(tmp_path / "validation.jsonl", ["never read"])
    hub = Hub(name=str(tmp_path))
    assert documents(hub) == texts
    data = load(_target_=HUB, name=str(tmp_path), samples=100)
    assert (len(data.train), len(data.val)) == (90, 10)
    train = data.tokenizer.decode(data.train.tokens.tolist())
    val = data.tokenizer.decode(data.val.tokens.tolist())
    assert not any(text[:200] in train and text[:200] in val for text in texts)
    published = load(_target_=HUB, name=str(tmp_path), samples=100, split="chunks", eot=False)
    assert len(published.train.tokens) == 100 * 64 + 64
    text = published.tokenizer.decode(published.train.tokens.tolist())
    assert text == "".join(texts)[: len(text)]
    alone, separate = Hub(name=str(tmp_path)), Hub(name=str(tmp_path), val_hub_split="validation")
    assert alone.fingerprint() != separate.fingerprint()


def test_a_hub_set_in_the_hubs_cache_needs_no_network(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--someone--texts"
    (repository / "snapshots/0123456789").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123456789")
    write_jsonl(repository / "snapshots/0123456789/train.jsonl", texts[:3])
    assert documents(Hub(name="someone/texts")) == texts[:3]


def test_chats_are_joined_by_newlines(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    assert documents(Hub(name=str(tmp_path), column="messages")) == ["Hello\nGood day"]


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "HF_ENDPOINT"])
def test_an_unreachable_hub_names_the_offline_choices(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(name, {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}[name])
    with pytest.raises(ConfigError, match=r"cannot be reached .*data=stdlib or data=text data\.path="):
        load(_target_=HUB, name="roneneldan/TinyStories")
    assert capsys.readouterr().err == ""  # no work is announced that never began


def test_corpora_import_neither_torch_nor_datasets() -> None:
    code = "import sys; import newllm.data.corpora.hub, newllm.config.identity\n"
    code += "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)
