"""Fill a token store: one pass (two for documents split by a survey) over the corpus, in batches of bounded memory."""

import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from newllm.data.bpe import RULE as BPE_RULE
from newllm.data.bpe import auto_tokenizer
from newllm.data.cache import build_folder, key_of, locked, say
from newllm.data.corpora.base import Data, Piece
from newllm.data.encode import encode
from newllm.data.enough import Budget, budget_of, check_lengths, refuse_too_few
from newllm.data.progress import Progress
from newllm.data.sides import sides
from newllm.data.split import Layout, Survey, choose_validation, hash_order, picked, prefix, survey
from newllm.data.store import RULE, Damaged, Store, StreamWriter, open_store, token_dtype, write_meta
from newllm.data.tokenizer import Tokenizer, identity, pretrained
from newllm.errors import ConfigError

COPIED = 1 << 20  # tokens copied at once
BYTES_PER_TOKEN = 6.0  # first guess of how much text a budget of tokens needs; doubled until it is enough


def find_or_build(data: Data, cache: Path) -> tuple[Store, list[str]]:
    """The store of this corpus, tokenizer, budget and split, and what to tell the user about it."""
    made_from = _made_from(data)
    folder = cache / "stores" / key_of(**made_from)
    notes: list[str] = []
    try:
        if store := open_store(folder):
            return store, notes
    except Damaged:
        pass  # looked at again under the lock: another process may be mending it
    with locked(folder, "token store"):
        try:
            if store := open_store(folder):
                return store, notes
        except Damaged as error:
            notes.append(f"the token store {folder} was damaged ({error}) and has been built again")
            say(notes[-1].replace("has been built", "is being built"))
        started = time.monotonic()
        build_folder(folder, lambda rough: _fill(data, rough, cache, made_from))
        store = open_store(folder)
        assert store is not None
        total = sum(len(stream.tokens) for stream in store.streams.values())
        say(f"token store built: {total:,} tokens in {time.monotonic() - started:.1f} s ({folder})")
        return store, notes


def _made_from(data: Data) -> dict[str, Any]:
    auto = ["auto", BPE_RULE, data.vocab_size, data.tokenizer_bytes]
    return {
        "rule": RULE,
        "corpus": data.fingerprint(),
        "tokenizer": auto if data.tokenizer == "auto" else identity(data.tokenizer),
        "rows": data.rows,
        "seq_len": data.seq_len if data.rows is not None else None,
        "by": "document" if data.split == "document" else "rows",
        "val_fraction": data.val_fraction,
        "eot": data.eot,
        "min_chars": data.min_chars,
        **_apart(data),
    }


def _apart(data: Data) -> dict[str, Any]:
    """The options that keep training and validation text apart, for the key; nothing where none is given."""
    if (data.documents, data.val_documents, data.val_samples) == (None, None, None):
        return {}
    names = ("documents", "val_documents", "val_joint", "val_samples")
    return {"apart": {name: getattr(data, name) for name in names}}


def _fill(data: Data, folder: Path, cache: Path, made_from: dict[str, Any]) -> None:
    found = None if data.streamed or data.val_documents is not None else survey(data)
    if found is not None and not len(found.sizes):
        raise ConfigError(
            f"the corpus has no text in documents of data.min_chars={data.min_chars} characters or more; "
            "give more text or type data.min_chars=1"
        )
    layout = _layout(data, found)
    tokenizer = (
        auto_tokenizer(data, layout, found, cache) if data.tokenizer == "auto" else pretrained(data.tokenizer, cache)
    )
    if data.eot and tokenizer.eot_id is None:
        raise ConfigError(f"data.tokenizer={data.tokenizer} has no end-of-text token; type data.eot=false")
    tokenizer.save(folder)
    budget = budget_of(data, layout)
    if layout == "document":
        assert found is not None
        writers = _by_survey(data, found, tokenizer, budget, folder)
    else:
        writers = _writers(folder, tokenizer, ["all"] if layout == "prefix" else ["train", "val"], budget)
        _encode(sides(data, layout, writers), tokenizer, folder, data.eot, writers)
    check_lengths(data, layout, {name: writer.length for name, writer in writers.items()})
    write_meta(folder, layout, [*writers], token_dtype(tokenizer.vocab_size), made_from)


def _layout(data: Data, found: Survey | None) -> Layout:
    if data.split != "document":
        return "prefix"
    if data.val_documents is not None:
        return "numbered"
    if found is None or data.own_validation:
        return "stream"
    if found.distinct > 1:
        return "document"
    if data.validates_apart:
        name = "val_samples" if data.documents is None else "documents"
        raise ConfigError(
            f"data.{name} keeps training and validation text apart by document, and the corpus is a single document "
            f"(or copies of one); give several documents or leave data.{name} out"
        )
    return "prefix"


def _writers(folder: Path, tokenizer: Tokenizer, names: list[str], budget: Budget) -> dict[str, StreamWriter]:
    dtype = token_dtype(tokenizer.vocab_size)
    return {name: StreamWriter(folder, name, dtype, budget.get(name)) for name in names}


def _by_survey(
    data: Data, found: Survey, tokenizer: Tokenizer, budget: Budget, folder: Path
) -> dict[str, StreamWriter]:
    """Both sides of a split by document, each in the order of hashes, so that a budget takes a fair sample."""
    validates = choose_validation(found, data.val_fraction)
    orders = {"train": hash_order(found, ~validates), "val": hash_order(found, validates)}
    if data.documents is not None:
        refuse_too_few(data.documents, len(orders["train"]))
        orders["train"] = np.sort(orders["train"])[: data.documents]
    per_token = BYTES_PER_TOKEN
    while True:
        chosen = {
            side: prefix(order, found.sizes, budget[side] * per_token) if side in budget else order
            for side, order in orders.items()
        }
        wanted = np.zeros(len(validates), dtype=bool)
        for numbers in chosen.values():
            wanted[numbers] = True
        rough = _writers(folder, tokenizer, ["train", "val"], {})
        pieces = (("val" if validates[number] else "train", piece) for number, piece in picked(data, wanted))
        _encode(pieces, tokenizer, folder, data.eot, rough)
        if all(
            rough[side].length >= needed or len(chosen[side]) == len(orders[side]) for side, needed in budget.items()
        ):
            break
        per_token *= 2
    final = _writers(folder, tokenizer, ["train.ordered", "val.ordered"], {})
    for side, numbers in chosen.items():
        _reorder(folder, rough[side], final[f"{side}.ordered"], numbers, budget.get(side))
        for ending in ("bin", "documents.npy"):
            (folder / f"{side}.ordered.{ending}").replace(folder / f"{side}.{ending}")
    return {side: final[f"{side}.ordered"] for side in orders}


def _reorder(folder: Path, rough: StreamWriter, final: StreamWriter, numbers: np.ndarray, limit: int | None) -> None:
    """Copy the documents, written in the corpus' order, in the order of `numbers`."""
    lengths = np.frombuffer(rough.document_tokens, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    final.limit = limit
    with open(folder / f"{rough.name}.bin", "rb", buffering=0) as stream:  # read: mapped pages would count as ours
        for place in np.argsort(np.argsort(numbers)):
            if final.full:
                break
            stream.seek(int(starts[place]) * rough.dtype.itemsize)
            left = int(lengths[place])
            while left and not final.full:
                ids = np.fromfile(stream, rough.dtype, min(left, COPIED))
                final.write(ids, 0)
                left -= len(ids)
            final.write(np.empty(0, rough.dtype), rough.document_bytes[place])
            final.end_document()
    final.close()


def _encode(
    pieces: Iterable[tuple[str, Piece]], tokenizer: Tokenizer, folder: Path, eot: bool, writers: dict[str, StreamWriter]
) -> None:
    """Encode the pieces into their writers, which are closed at the end. The tokenizer is saved in `folder`."""
    dtype = token_dtype(tokenizer.vocab_size)
    ending = np.array([tokenizer.eot_id] if eot else [], dtype=dtype)
    progress = Progress("encoding", "tokens")
    items = (((side, piece.last), piece.text) for side, piece in pieces)
    with closing(encode(items, tokenizer, folder, dtype)) as encoded:
        for (side, last), (size, ids) in encoded:
            writer = writers[side]
            writer.write(ids, size)
            if last:
                writer.write(ending, 0)
                writer.end_document()
            progress.show(sum(writer.length for writer in writers.values()))
    progress.end()
    for writer in writers.values():
        writer.close()
