"""Fill a token store: one pass (two for documents split by a survey) over the corpus, in batches of bounded memory."""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from newllm.data.bpe import RULE as BPE_RULE
from newllm.data.bpe import auto_tokenizer
from newllm.data.cache import build_folder, key_of, locked, say
from newllm.data.corpora.base import Data, Piece
from newllm.data.encode import encode
from newllm.data.progress import Progress
from newllm.data.split import Layout, Survey, choose_validation, hash_order, hash_validates, picked, prefix, survey
from newllm.data.store import RULE, Damaged, Store, StreamWriter, open_store, token_dtype, write_meta
from newllm.data.tokenizer import Tokenizer, identity, pretrained
from newllm.errors import ConfigError

COPIED = 1 << 20  # tokens copied at once
BYTES_PER_TOKEN = 6.0  # first guess of how much text a budget of tokens needs; doubled until it is enough

Budget = dict[str, int] | None  # tokens needed of each stream; all there are of one that is not named


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
    }


def _fill(data: Data, folder: Path, cache: Path, made_from: dict[str, Any]) -> None:
    found = None if data.streamed else survey(data)
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
    budget = _budget(data, layout)
    if layout == "document":
        assert found is not None
        writers = _by_survey(data, found, tokenizer, budget, folder)
    else:
        writers = _writers(folder, tokenizer, ["train", "val"] if layout == "stream" else ["all"], budget)
        _encode(_sides(data, layout, writers), tokenizer, folder, data.eot, writers)
    _check(data, writers, budget)
    write_meta(folder, layout, [*writers], token_dtype(tokenizer.vocab_size), made_from)


def _layout(data: Data, found: Survey | None) -> Layout:
    if data.split != "document":
        return "prefix"
    if found is None or data.own_validation:
        return "stream"
    return "document" if found.distinct > 1 else "prefix"


def _budget(data: Data, layout: Layout) -> Budget:
    if data.rows is None:
        return None
    both = zip(("train", "val"), data.rows, strict=True)
    sides = {side: rows * data.seq_len for side, rows in both if rows is not None}
    if layout == "prefix":
        return {"all": sum(sides.values()) + data.seq_len}
    return {side: tokens + 1 for side, tokens in sides.items()}


def _writers(folder: Path, tokenizer: Tokenizer, names: list[str], budget: Budget) -> dict[str, StreamWriter]:
    dtype = token_dtype(tokenizer.vocab_size)
    return {name: StreamWriter(folder, name, dtype, budget.get(name) if budget else None) for name in names}


def _sides(data: Data, layout: Layout, writers: dict[str, StreamWriter]) -> Iterator[tuple[str, Piece]]:
    """Pieces in the corpus' order with the stream of each, until every stream is full."""
    if data.own_validation:
        for side, pieces in (("train", data.pieces()), ("val", data.validation_pieces())):
            for piece in pieces:
                if writers[side].full:
                    break
                yield side, piece
        return
    for piece in data.pieces():
        if all(writer.full for writer in writers.values()):
            return
        side = "all"
        if layout == "stream":
            side = "val" if hash_validates(piece.text, data.val_fraction) else "train"
        if not writers[side].full:
            yield side, piece


def _by_survey(
    data: Data, found: Survey, tokenizer: Tokenizer, budget: Budget, folder: Path
) -> dict[str, StreamWriter]:
    """Both sides of a split by document, each in the order of hashes, so that a budget takes a fair sample."""
    validates = choose_validation(found, data.val_fraction)
    orders = {"train": hash_order(found, ~validates), "val": hash_order(found, validates)}
    per_token = BYTES_PER_TOKEN
    while True:
        chosen = orders
        if budget is not None:
            chosen = {side: prefix(order, found.sizes, budget[side] * per_token) for side, order in orders.items()}
        wanted = np.zeros(len(validates), dtype=bool)
        for numbers in chosen.values():
            wanted[numbers] = True
        rough = _writers(folder, tokenizer, ["train", "val"], None)
        pieces = (("val" if validates[number] else "train", piece) for number, piece in picked(data, wanted))
        _encode(pieces, tokenizer, folder, data.eot, rough)
        if budget is None or all(
            rough[side].length >= budget[side] or len(chosen[side]) == len(orders[side]) for side in orders
        ):
            break
        per_token *= 2
    final = _writers(folder, tokenizer, ["train.ordered", "val.ordered"], None)
    for side, numbers in chosen.items():
        _reorder(folder, rough[side], final[f"{side}.ordered"], numbers, budget[side] if budget else None)
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


def _check(data: Data, writers: dict[str, StreamWriter], budget: Budget) -> None:
    """Raise ConfigError when there is less text than the budget (or one row a side) needs."""
    for side, writer in writers.items():
        needed = budget.get(side, data.seq_len + 1) if budget else data.seq_len + 1
        if side == "all":  # the last row needs one token after it, not the whole row that is taken where there is one
            needed = needed - data.seq_len + 1 if budget else data.least_rows * data.seq_len + 1
        if writer.length < needed:
            where = {"train": "training ", "val": "validation ", "all": ""}[side]
            rows = sum(filter(None, data.rows)) if data.rows and budget and side in budget else 0
            possible = int(rows * writer.length / needed)
            fewer = f"tokens={possible * data.seq_len}" if data.tokens is not None else f"samples={possible}"
            instead = f"{fewer} or less" if possible >= data.least_rows else "a smaller seq_len"
            raise ConfigError(
                f"too little {where}text: {needed:,} tokens are needed and {writer.length:,} were found; "
                f"give more text or type {instead}" + (", or samples=null tokens=null for all there is" if rows else "")
            )
