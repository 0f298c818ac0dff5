"""A corpus whose repository has a validation split of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from newllm.data import Dataset
from newllm.data.corpora.hub import Hub

Load = Callable[..., Dataset]
HUB = "newllm.data.corpora.hub.Hub"


@pytest.fixture
def repository(tmp_path: Path, texts: list[str]) -> Path:
    """Twenty documents train, twelve others validate; a folder in the hub's layout."""
    for name, part in (("train", texts[:20]), ("validation", texts[20:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return tmp_path


def test_all_of_the_validation_split_validates_and_the_budget_is_of_training_rows(
    load: Load, repository: Path, texts: list[str]
) -> None:
    data = load(_target_=HUB, name=str(repository), val_hub_split="validation", samples=100, eot=False)
    assert len(data.train) == 100
    train, val = data.tokenizer.decode(data.train.tokens.tolist()), data.tokenizer.decode(data.val_tokens.tolist())
    assert "".join(texts[:20]).startswith(train)  # the documents in their order, nothing between them
    assert len(data.train.tokens) == 100 * 64 + 1
    assert "".join(texts[20:]).startswith(val)
    assert len(data.val) == (len(data.val.tokens) - 1) // 64  # whole, whatever the budget
    assert data.tokenizer.decode(data.val.tokens.tolist()) == "".join(texts[20:])


def test_without_a_budget_all_of_both_splits_is_taken(load: Load, repository: Path, texts: list[str]) -> None:
    data = load(_target_=HUB, name=str(repository), val_hub_split="validation", samples=None, eot=False)
    assert data.tokenizer.decode(data.train.tokens.tolist()) == "".join(texts[:20])


def test_a_validation_split_is_part_of_the_corpus_in_the_cache(repository: Path) -> None:
    alone, beside = Hub(name=str(repository)), Hub(name=str(repository), val_hub_split="validation")
    assert alone.fingerprint() != beside.fingerprint()
