"""The token store: whole or not at all, built once, cheap to open."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from newllm.data.corpora.corpus import Piece
from newllm.data.corpora.text_files import TextFiles
from newllm.data.disk_cache import cache_folder, locked
from newllm.data.token_store import StreamWriter, read_stream, token_dtype
from newllm.data.tokenizer import Tokenizer
from newllm.errors import RunError
from tests.support.corpora import SMALL, TEXT_FILES, Load, write_jsonl

PREPARE = """
import json, sys
from newllm.data import prepare
data = prepare(json.loads(sys.argv[1]), None, seed=1, runtime={"cache_dir": sys.argv[2]})
data.val.arrays([0])
heavy = {name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "datasets", "pandas"}
print(json.dumps([data.fingerprint, sorted(heavy), data.notes]))
"""


def start(data_node: dict, cache: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, json.dumps(data_node), str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def data_node(corpus: Path) -> dict:
    return {"_target_": TEXT_FILES, "path": str(corpus), **SMALL}


def store_in(cache: Path) -> Path:
    (folder,) = [path for path in (cache / "stores").iterdir() if path.is_dir()]
    return folder


def test_two_processes_build_one_store(data_node: dict, tmp_path: Path) -> None:
    processes = [start(data_node, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    built = sum("token store built" in errors for _, errors in outputs)
    assert built == 1
    assert store_in(tmp_path).name  # one folder and no unfinished one
    warm, errors = start(data_node, tmp_path).communicate(timeout=120)
    assert json.loads(warm) == [json.loads(outputs[0][0])[0], [], []]  # neither torch, transformers nor datasets
    assert errors == ""


def test_a_waiting_process_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    waiter = "from pathlib import Path\nfrom newllm.data.disk_cache import locked\n"
    waiter += f"with locked(Path({str(tmp_path / 'x')!r}), 'token store'): print('mine')"
    with locked(tmp_path / "x", "token store"):
        process = subprocess.Popen([sys.executable, "-c", waiter], stdout=-1, stderr=-1, text=True)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "waiting" in line
        assert process.poll() is None
    out, _ = process.communicate(timeout=60)
    assert out == "mine\n"


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no meta", "tokenizer"])
def test_a_damaged_store_is_built_again(load: Load, tmp_path: Path, damage: str) -> None:
    whole = load(cache=tmp_path)
    folder = store_in(tmp_path)
    tokens = folder / "train.bin"
    if damage == "truncate":
        os.truncate(tokens, tokens.stat().st_size // 2)
    elif damage == "flip":
        content = bytearray(tokens.read_bytes())
        content[100] ^= 1
        tokens.write_bytes(content)
    elif damage == "remove":
        tokens.unlink()
    elif damage == "no meta":
        (folder / "meta.json").write_text("{")
    else:
        (folder / "tokenizer.json").write_text("{}")
    again = load(cache=tmp_path)
    assert any("damaged" in note and "built again" in note for note in again.notes)
    assert again.fingerprint == whole.fingerprint
    assert load(cache=tmp_path).notes == []


def test_what_a_killed_process_left_is_no_store(load: Load, tmp_path: Path) -> None:
    whole = load(cache=tmp_path)
    folder = store_in(tmp_path)
    folder.rename(folder.with_name(folder.name + ".building"))
    assert load(cache=tmp_path).fingerprint == whole.fingerprint
    assert store_in(tmp_path) == folder


@pytest.mark.parametrize(
    ("writer", "method", "error"),
    [
        (StreamWriter, "write", OSError(errno.ENOSPC, "No space left on device")),
        (StreamWriter, "write", OSError(errno.EFBIG, "File too large")),  # as under ulimit -f
        (Tokenizer, "save", Exception("No space left on device (os error 28)")),  # of the tokenizers library
    ],
)
def test_a_full_disk_leaves_nothing_behind(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: type, method: str, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(writer, method, full)
    with pytest.raises(RunError, match="no space left"):
        load(cache=tmp_path)
    assert [path for path in tmp_path.glob("stores/*") if path.is_dir()] == []
    assert not [*tmp_path.rglob("*.building")]


def test_a_text_that_grows_while_it_is_read_is_refused(
    load: Load, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "text.jsonl", texts)
    read = TextFiles.source

    def growing(self: TextFiles) -> Iterator[Piece]:
        yield from read(self)
        with path.open("a") as file:
            file.write('{"text": "more"}\n')

    monkeypatch.setattr(TextFiles, "source", growing)
    with pytest.raises(RunError, match="has changed while it was read"):
        load(path=path, cache=tmp_path / "cache")
    assert not [entry for entry in (tmp_path / "cache" / "stores").iterdir() if entry.is_dir()]


def test_an_edited_corpus_gets_a_store_of_its_own(load: Load, texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    write_jsonl(path, texts)
    before = load(path=path).fingerprint
    edited = [text.replace("return", "RETURN") for text in texts]  # of the same size
    write_jsonl(path, edited)
    os.utime(path, ns=(1, 1))
    assert load(path=path).fingerprint != before


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50_304, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_tokens_take_no_more_bytes_than_they_need(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size).name == dtype
    writer = StreamWriter(tmp_path, "all", token_dtype(vocab_size))
    ids = np.array([0, 7, vocab_size - 1], dtype=np.uint32)
    writer.write(ids, 3, last=True)
    writer.close()
    stream = read_stream(tmp_path, "all", token_dtype(vocab_size))
    assert stream.tokens.tolist() == ids.tolist()
    assert stream.document_tokens.tolist() == [3]


def test_documents_are_recorded(load: Load, tmp_path: Path, texts: list[str]) -> None:
    load(samples=None, cache=tmp_path)
    folder = store_in(tmp_path)
    sizes = []
    for side in ("train", "val"):
        stream = read_stream(folder, side, np.dtype("uint16"))
        assert stream.document_tokens.sum() == len(stream.tokens)
        sizes += stream.document_bytes.tolist()
    assert sorted(sizes) == sorted(len(text.encode()) for text in texts)


def test_the_default_cache_is_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path))
    assert cache_folder() == cache_folder({"cache_dir": None}) == tmp_path
    assert cache_folder({"cache_dir": "/x"}) == Path("/x")
