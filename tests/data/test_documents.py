"""Budgets by documents: which of them train, which validate, in what order, and nothing between them."""

import json
from pathlib import Path

import numpy as np
import pytest

from newllm.data import Dataset
from newllm.errors import ConfigError
from tests.support.corpora import FACTS, HUB, Load, write_jsonl


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A folder in the hub's layout: each document a chat of two messages."""
    folder = tmp_path_factory.mktemp("chats")
    lines = []
    for text in texts:
        half = len(text) // 2
        messages = [{"role": "user", "content": text[:half]}, {"role": "assistant", "content": text[half:]}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (folder / "train_sft.jsonl").write_text("".join(lines))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_sft\n    path: train_sft.jsonl\n---\n"
    )
    return folder


def encoded(data: Dataset, documents: list[str]) -> list[int]:
    return [token for document in documents for token in data.tokenizer.encode(document)]


def test_the_published_concatenation_token_by_token(load: Load, chats: Path, texts: list[str]) -> None:
    """Whole chats, contents joined by newlines, nothing between the chats; those that validate are one text."""
    data = load(
        _target_=HUB, name=str(chats), hub_split="train_sft", column="messages", eot=False,
        documents=7, val_documents=[20, 23], val_joint="\n\n",
    )  # fmt: skip
    documents = [text[: len(text) // 2] + "\n" + text[len(text) // 2 :] for text in texts]
    assert data.stream("train").tolist() == encoded(data, documents[:7])
    assert data.stream("val").tolist() == data.tokenizer.encode("\n\n".join(documents[20:24]))
    assert data.counts["data/documents"] == 7 + 4
    assert len(data.train) == (len(data.stream("train")) - 1) // 64  # rows as ever, of the same text
    assert data.train.arrays(np.arange(2))[0].reshape(-1).tolist() == data.stream("train")[:128].tolist()


def test_documents_are_encoded_and_ended_one_by_one(load: Load, texts: list[str]) -> None:
    data = load(documents=5, val_documents=[5, 6])
    eot = [data.tokenizer.eot_id]
    for side, chosen in (("train", texts[:5]), ("val", texts[5:7])):
        assert data.stream(side).tolist() == [t for text in chosen for t in data.tokenizer.encode(text) + eot]


def test_a_document_in_pieces_is_one_document(
    load: Load, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("newllm.data.corpora.text_files.PIECE_CHARS", 5000)
    for number, text in enumerate(texts[:4]):
        (tmp_path / f"{number}.txt").write_text(text)
    assert (tmp_path / "0.txt").stat().st_size > 5000
    data = load(path=tmp_path, documents=1, val_documents=[2, 3], val_joint="\n\n", eot=False)
    assert data.tokenizer.decode(data.stream("train").tolist()) == texts[0]
    assert data.tokenizer.decode(data.stream("val").tolist()) == texts[2] + "\n\n" + texts[3]


def test_short_documents_have_no_number(load: Load, texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_jsonl(path, ["short", *texts[:2], "", *texts[2:6]])
    data = load(path=path, documents=3, val_documents=[4, 5], min_chars=10, eot=False)
    assert data.stream("train").tolist() == encoded(data, texts[:3])
    assert data.stream("val").tolist() == encoded(data, texts[4:6])


def test_the_other_documents_train_where_the_budget_is_of_rows(load: Load, texts: list[str]) -> None:
    data = load(val_documents=[1, 2], samples=100, eot=False)
    others = encoded(data, [texts[0], *texts[3:]])
    assert len(data.train) == 100  # samples are training rows alone
    assert data.stream("train").tolist() == others[: 100 * 64 + 1]
    assert data.stream("val").tolist() == encoded(data, texts[1:3])
    assert load(val_documents=[1, 2], samples=None, eot=False).stream("train").tolist() == others


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("budget", ["samples", "documents"])
def test_validation_rows_are_the_same_whatever_trains(
    load: Load, chats: Path, texts: list[str], budget: str, streamed: bool
) -> None:
    hub = {"_target_": HUB, "name": str(chats), "hub_split": "train_sft", "column": "messages"} if streamed else {}
    sizes = (10, 300) if budget == "samples" else (2, 20)
    loaded = [load(**hub, **{budget: size}, val_samples=8) for size in sizes]
    assert {len(data.val) for data in loaded} == {8}
    assert len({data.stream("val").tobytes() for data in loaded}) == 1
    assert {len(data.stream("val")) for data in loaded} == {8 * 64 + 1}
    assert len({data.tokenizer.backend.to_str() for data in loaded}) == 1
    lengths = [len(data.stream("train")) for data in loaded]
    assert lengths == sorted(set(lengths))
    if budget == "samples":
        assert [len(data.train) for data in loaded] == [*sizes]
    validated = loaded[0].tokenizer.decode(loaded[0].stream("val").tolist()).split("<|endoftext|>")[0]
    assert validated[:200] not in loaded[-1].tokenizer.decode(loaded[-1].stream("train").tolist())


def test_documents_alone_are_the_first_of_those_that_do_not_validate(load: Load, texts: list[str]) -> None:
    whole, few = load(samples=None, eot=False), load(documents=4, eot=False)
    validate = whole.tokenizer.decode(whole.stream("val").tolist())
    assert few.stream("val").tolist() == whole.stream("val").tolist()
    first = [text for text in texts if text[:200] not in validate][:4]
    assert few.stream("train").tolist() == encoded(few, first)


def test_a_validation_split_with_a_number_of_training_documents(load: Load, hub_folder: str, texts: list[str]) -> None:
    data = load(_target_=HUB, name=hub_folder, val_hub_split="validation", documents=3, val_samples=5, eot=False)
    assert data.stream("train").tolist() == encoded(data, texts[:3])
    assert data.stream("val").tolist() == encoded(data, texts[20:])[: 5 * 64 + 1]


@pytest.mark.parametrize("split", ["document", "contiguous"])
def test_a_stream_is_the_text_of_its_rows(load: Load, split: str) -> None:
    data = load(split=split, facts=FACTS)
    for side, rows in (("train", data.train), ("val", data.val)):
        inputs, labels = rows.arrays(np.arange(len(rows.starts)))
        assert data.stream(side).tolist() == [*inputs.reshape(-1).tolist(), int(labels[-1, -1])]
    for read in (lambda data: data.stream("train"), lambda data: data.val_tokens):
        with pytest.raises(ConfigError, match=r"data.split=chunks"):
            read(load(split="chunks"))


def test_a_row_longer_than_a_text_that_is_in_the_cache_already(load: Load) -> None:
    assert len(load(documents=1, val_documents=[1, 1]).val)
    with pytest.raises(ConfigError, match=r"too little .* type a smaller seq_len"):
        load(documents=1, val_documents=[1, 1], seq_len=50_000)


def test_tokenizer_of_a_numbered_split_sees_no_validation_text(load: Load, texts: list[str], tmp_path: Path) -> None:
    """Other validation documents, the same tokenizer; and the number that train does not change it either."""
    path = tmp_path / "x.jsonl"
    loaded = []
    for validating in (texts[10:12], texts[20:22]):
        lines = [*texts[:5], *validating, *texts[12:16]]
        write_jsonl(path, lines)
        loaded += [load(path=path, val_documents=[5, 6], documents=n, cache=tmp_path / "cache") for n in (2, 5)]
    assert len({data.tokenizer.backend.to_str() for data in loaded}) == 1
    assert len({data.stream("val").tobytes() for data in loaded}) == 2


def test_all_of_a_validation_split_validates_and_the_budget_is_of_training_rows(
    load: Load, hub_folder: str, texts: list[str]
) -> None:
    data = load(_target_=HUB, name=hub_folder, val_hub_split="validation", samples=100, eot=False)
    assert len(data.train) == 100
    assert data.stream("train").tolist() == encoded(data, texts[:20])[: 100 * 64 + 1]
    assert data.stream("val").tolist() == encoded(data, texts[20:])
    assert len(data.val) == (len(data.stream("val")) - 1) // 64  # whole, whatever the budget


def test_without_a_budget_all_of_both_splits_is_taken(load: Load, hub_folder: str, texts: list[str]) -> None:
    data = load(_target_=HUB, name=hub_folder, val_hub_split="validation", samples=None, eot=False)
    assert data.stream("train").tolist() == encoded(data, texts[:20])
    assert data.stream("val").tolist() == encoded(data, texts[20:])
