"""What is read of a folder, what is left out, and when a hash is computed again."""

import os
import socket
from pathlib import Path

import pytest

from newllm.config import content
from newllm.config.content import content_hash, find
from newllm.errors import ConfigError

TEXT = ("*.txt", "*.jsonl")


def names(path: Path, patterns: tuple[str, ...] = TEXT) -> list[str]:
    return [file.relative_to(path).as_posix() for _, file in find(path, patterns).files]


def test_everything_that_is_not_read_is_counted(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    folder = tmp_path / "texts"
    for file in (elsewhere / "e.txt", folder / "b.TXT", folder / "sub" / "a.jsonl", folder / "c.md", folder / ".d.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text")
    (folder / ".git").mkdir()
    (folder / "to_file.txt").symlink_to(elsewhere / "e.txt")
    (folder / "to_folder").symlink_to(elsewhere)
    (folder / "up").symlink_to(folder)
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket.txt"))
    (folder / "run-s1-12345678").mkdir()
    for file in ("config.yaml", "status.json", "metrics.jsonl"):
        (folder / "run-s1-12345678" / file).write_text("{}")
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    assert names(folder) == ["b.TXT", os.fsdecode(b"caf\xe9.txt"), "sub/a.jsonl", "to_file.txt"]
    assert find(folder, TEXT).sentence() == (
        "left out: 2 broken links, 1 file of another kind, 1 folder of results, 2 hidden files or folders, "
        "2 linked folders, 2 pipes, sockets or devices"
    )
    assert find(folder / "run-s1-12345678", TEXT).files  # named itself


def test_unreadable_files_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("text")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("b.txt"))  # as root, all are readable
    assert names(tmp_path) == ["a.txt"]
    assert find(tmp_path, TEXT).sentence() == "left out: 1 unreadable file"


@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "nul\0byte", "loop", "pipe.txt"])
def test_nothing_is_read_where_nothing_can_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe.txt")
    assert content_hash(tmp_path / name, TEXT) is None


@pytest.mark.parametrize(("path", "which"), [("/", "the root"), ("//..", "the root"), ("~/", "your home")])
def test_a_whole_file_system_is_not_searched(path: str, which: str) -> None:
    with pytest.raises(ConfigError, match=rf"is {which}.*; name the folder"):
        find(path, ["*.txt"])


def test_patterns_with_a_slash_are_of_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for file in ("tokenizer.json", "old/tokenizer.json", "my_tokenizer.json"):
        (tmp_path / file).write_text("{}")
    assert names(tmp_path, ("/tokenizer.json",)) == ["tokenizer.json"]
    assert len(names(tmp_path, ("*",))) == 3


def test_names_count_only_where_all_files_are_read(tmp_path: Path) -> None:
    for folder, file in (("one", "a.txt"), ("two", "b.txt"), ("three", "b.jsonl")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("text")
    assert content_hash(tmp_path / "one", TEXT) == content_hash(tmp_path / "two", TEXT)
    assert content_hash(tmp_path / "one", TEXT) == content_hash(tmp_path / "one" / "a.txt", TEXT)
    assert content_hash(tmp_path / "two", TEXT) != content_hash(tmp_path / "three", TEXT)
    assert content_hash(tmp_path / "one", ("*",)) != content_hash(tmp_path / "two", ("*",))


def test_an_edit_of_equal_size_is_seen_though_its_time_is_set_back(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("cat")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    before = content_hash(file, TEXT)
    file.write_text("dog")
    os.utime(file, ns=times)
    assert content_hash(file, TEXT) != before


def test_a_large_text_is_read_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "LARGE", 1)
    monkeypatch.setattr(content, "SETTLED", -1)  # its last change counts as long ago
    monkeypatch.setattr(content, "_read", {})
    read: list[str] = []
    digest = content.hashlib.file_digest
    monkeypatch.setattr(content.hashlib, "file_digest", lambda file, kind: read.append(kind) or digest(file, kind))
    file = tmp_path / "a.txt"
    file.write_text("text")
    first = content_hash(file, TEXT)
    assert content_hash(file, TEXT) == first
    content._read.clear()  # another process
    assert (content_hash(file, TEXT), len(read)) == (first, 1)
    (note,) = (tmp_path / "cache" / "hashes").iterdir()
    for damaged in ("", "x", note.read_text().replace(first[0], "g"), note.read_text()[:-3]):
        content._read.clear()
        note.write_text(damaged)
        assert content_hash(file, TEXT) == first
    assert len(read) == 5
