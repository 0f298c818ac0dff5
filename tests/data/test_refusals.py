"""The sentences for text and budgets that cannot be: what is wrong, and what to type instead."""

import gzip
import os
import re
from pathlib import Path

import pytest

from newllm.data.corpora.hub import Hub
from newllm.data.corpora.text_files import TextFiles
from newllm.errors import ConfigError
from tests.support.corpora import HUB, Load

FILES = {
    "missing": ("nowhere.txt", None, "does not exist; it must name .txt"),
    "empty": ("a.txt", b"", "is empty"),
    "binary": ("a.txt", b"\x89PNG\r\n\xff\xfe\x00", "a.txt cannot be read as text"),
    "NUL bytes": ("a.txt", b"some\0text", "a.txt cannot be read as text (it contains NUL bytes)"),
    "other kind": ("a.md", b"# text", "is a file of another kind"),
    "bad JSON": ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl, line 2: not valid JSON"),
    "no key": ("a.jsonl", b'{"text": "x"}\n\n{"b": "y"}', "a.jsonl, line 3: no text under the key 'text' (found: b)"),
    "null": ("a.jsonl", b'{"text": null}', "a.jsonl, line 1: the value of 'text' is null, no text"),
    "list": ("a.jsonl", b'{"text": ["x"]}', "a.jsonl, line 1: the value of 'text' is of type list, no text"),
    "deep": ("a.jsonl", b'{"text": "x", "y": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "a.jsonl, line 1: not valid"),
    "Latin-1": ("a.txt", "caf\xe9".encode("latin-1"), "a.txt cannot be read as text"),
    "no object": ("a.jsonl", b"3", "a.jsonl, line 1: no text under the key 'text' (found: int)"),
    "binary JSON": ("a.jsonl", b"\xff\xfe\x00", "a.jsonl cannot be read as text"),
    "not gzip": ("a.jsonl.gz", b"plain", "a.jsonl.gz cannot be read as text"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(b'{"text": "whole"}\n' * 1000)[:-20], "a.jsonl.gz cannot be read as text"),
    "not parquet": ("a.parquet", b"plain", "a.parquet cannot be read as text"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_named_with_what_is_accepted(load: Load, tmp_path: Path, name: str) -> None:
    file, content, message = FILES[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(path=tmp_path / file, cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("stores/*/"))


def test_a_folder_without_text(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# no text")
    with pytest.raises(ConfigError, match=r"holds no \.txt, \.jsonl, \.jsonl\.gz or \.parquet files"):
        load(path=tmp_path)


def test_parquet_that_is_no_utf8(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    offsets = pyarrow.array([0, 4], pyarrow.int32()).buffers()[1]
    column = pyarrow.StringArray.from_buffers(1, offsets, pyarrow.py_buffer("caf\xe9".encode("latin-1")))
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a\.parquet cannot be read as text"):
        list(TextFiles(path=str(tmp_path)).pieces())


@pytest.mark.parametrize("place", ["/proc/self/task", "/etc/ssl", "loop", "gone", "pipe.txt", "a" * 300])
def test_places_without_text(tmp_path: Path, place: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ConfigError, match=r"^data\.path=.*(does not exist|holds no|is a file of another kind)"):
        TextFiles(path=str(tmp_path / place)).fingerprint()


def test_parquet_without_the_column(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"no column 'text' \(found: body, n\)"):
        list(TextFiles(path=str(tmp_path)).pieces())
    with pytest.raises(ConfigError, match="holds no text"):
        list(TextFiles(path=str(tmp_path), text_key="n").pieces())


TOO_FEW = "[\\d,]+ were found; give more text or type"
OPTIONS: list[tuple[dict, str]] = [
    ({"path": None}, r"data\.path=FILE_OR_FOLDER"),
    ({"min_chars": 9_999_999}, r"no text in documents of data\.min_chars=9999999"),
    # budgets
    ({"samples": 0}, "samples must be greater than 0, as in samples=100; got 0"),
    ({"seq_len": -1}, "seq_len must lie in"),
    ({"documents": 0}, r"data\.documents must be greater than 0"),
    ({"val_samples": -1}, r"data\.val_samples must be greater than 0"),
    ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1"),
    ({"samples": 9}, "samples=9 gives 9 training and 0 validation rows, and both sides need one; type samples=10"),
    ({"tokens": 64}, "type tokens=640 or more"),
    ({"samples": 100_000}, f"too little training text: 5,760,001 tokens are needed, {TOO_FEW} .*samples"),
    ({"tokens": 6_400_000}, r"too little training text: .*tokens=\d+ or less"),
    ({"samples": 100_000, "split": "contiguous"}, f"too little text: 6,400,001 tokens are needed, {TOO_FEW}"),
    ({"samples": None, "seq_len": 300_000}, r"too little validation text: 300,001 tokens are needed|training text"),
    ({"val_samples": 90_000}, r"too little validation text: 5,760,001 tokens .*type data\.val_samples=\d+ or less"),
    ({"samples": 90_000, "val_samples": 5}, r"too little training text: 5,760,001 tokens .*type samples=\d+ or"),
    ({"documents": 1, "val_documents": [1, 1], "seq_len": 50_000}, r"too little .* type a smaller seq_len$"),
    ({"documents": 33}, r"data\.documents=33 needs 33 training documents and the corpus has 2\d; type data"),
    # tokenizers
    ({"vocab_size": 100}, "vocab_size must lie in"),
    ({"tokenizer": "/nowhere/at all"}, "data.tokenizer=/nowhere/at all does not exist; .*data.tokenizer=auto"),
    ({"tokenizer": "owner/name"}, "is not a folder, and the Hugging Face hub .* data.tokenizer=auto"),
    # splits
    ({"split": "documents"}, "split=documents: expected document, contiguous or chunks .*did you mean document"),
    ({"documents": 5, "tokens": 1000}, r"both set the size of the training text; leave one of the two out"),
    ({"documents": 5, "split": "chunks"}, r"data\.split=chunks takes .*data\.documents keeps .*leave one"),
    ({"val_samples": 5, "split": "contiguous"}, r"data\.val_samples keeps the two texts apart"),
    ({"val_documents": [3]}, r"data\.val_documents=\[3\] is not a range .*data\.val_documents=\[1000,1019\]"),
    ({"val_documents": [9, 3]}, r"is not a range of documents; type the first and the last"),
    ({"val_documents": [-1, 3]}, r"counted from 0"),
    ({"val_joint": "\n\n"}, r"data\.val_joint .* data\.val_documents, which is not set"),
    (
        {"documents": 10, "val_documents": [9, 12]},
        r"trains on documents 0 to 9, and data\.val_documents=\[9,12\] validates on document 9; "
        r"type data\.documents=9 or less, or 'data\.val_documents=\[10,13\]'",
    ),
    (
        {"documents": 5, "val_documents": [30, 39]},
        r"data\.val_documents=\[30,39\] needs document 39 and the corpus has 32, numbered from 0; "
        r"type 'data\.val_documents=\[22,31\]', or give more text",
    ),
    ({"documents": 25, "val_documents": [30, 39]}, r"has 32, numbered from 0; give more text"),
    ({"documents": 40, "val_documents": [50, 51]}, r"needs document 51 and the corpus has 32"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=lambda value: str(value)[:60])
def test_impossible_options(load: Load, monkeypatch: pytest.MonkeyPatch, options: dict, message: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=message) as caught:
        load(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "contiguous"}, r"data\.split=contiguous takes .*data\.val_hub_split .*leave one of the two out"),
        ({"tokens": 10}, r"tokens=10 gives 0 training rows, and one is needed; type tokens=64 or more"),
        ({"samples": 1_000_000}, r"too little training text: .*samples=\d+ or less"),
        ({"val_hub_split": "nothing"}, r"split nothing\) could not be read.*data=stdlib"),
        ({"val_documents": [1, 2]}, r"both name the validation text"),
        ({"column": "body"}, r"no text in column 'body' \(found: text\); type data\.column=COLUMN"),
        (
            {"val_hub_split": None, "samples": None, "documents": 5},
            r"does not say which text validates.*data\.val_samples=500, or 'data\.val_documents",
        ),
    ],
)
def test_impossible_options_of_a_hub_corpus(load: Load, hub_folder: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(_target_=HUB, name=hub_folder, **{"val_hub_split": "validation", "samples": 100, **options})


def test_a_hub_corpus_needs_a_name() -> None:
    with pytest.raises(ConfigError, match=r"type data\.name=OWNER/NAME"):
        list(Hub().pieces())


def test_one_document_cannot_both_train_and_validate(load: Load, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("".join(texts[:8]))
    with pytest.raises(ConfigError, match=r"data\.val_samples keeps .*single document .*leave data\.val_samples out"):
        load(path=tmp_path / "one.txt", val_samples=5)
