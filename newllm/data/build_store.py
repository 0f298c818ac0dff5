"""Fill a token store: one pass over the corpus (two for splits that survey it), in batches of bounded memory."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from newllm.data.bpe import RULE as BPE_RULE
from newllm.data.bpe import auto_tokenizer
from newllm.data.budget import budget_of, check_documents, check_lengths, refuse_val_documents
from newllm.data.cache import Progress, find_or_build, key_of, say
from newllm.data.corpora.corpus import Corpus, Piece
from newllm.data.split import (
    Layout,
    Survey,
    choose_validation,
    hash_order,
    layout_of,
    leading,
    numbered,
    side_of,
    survey,
)
from newllm.data.token_store import RULE, Damaged, Store, StreamWriter, open_store, token_dtype, write_meta
from newllm.data.tokenizer import Tokenizer, identity, pretrained
from newllm.errors import ConfigError

BATCH_CHARS = 1 << 20  # text encoded at once
COPIED = 1 << 20  # tokens copied at once
BYTES_PER_TOKEN = 6.0  # first guess of the text that a budget of tokens needs; doubled until it suffices

Writers = dict[str, StreamWriter]


def store_of(corpus: Corpus, cache: Path) -> tuple[Store, list[str]]:
    """The store of this corpus, tokenizer, budget and split, from the cache or built into it, and user notes."""
    auto = ["auto", BPE_RULE, corpus.vocab_size, corpus.tokenizer_bytes]
    made_from: dict[str, Any] = {
        "rule": RULE,
        "corpus": corpus.fingerprint(),
        "tokenizer": auto if corpus.tokenizer == "auto" else identity(corpus.tokenizer),
        "rows": corpus.rows,
        "seq_len": corpus.seq_len if corpus.rows is not None else None,
        "by": "document" if corpus.split == "document" else "rows",
        "val_fraction": corpus.val_fraction,
        "eot": corpus.eot,
        "min_chars": corpus.min_chars,
    }
    if (corpus.documents, corpus.val_documents, corpus.val_samples) != (None, None, None):
        names = ("documents", "val_documents", "val_joint", "val_samples")
        made_from["apart"] = {name: getattr(corpus, name) for name in names}
    folder = cache / "stores" / key_of(**made_from)
    damage: Damaged | None = None
    notes: list[str] = []

    def load(folder: Path) -> Store | None:
        nonlocal damage
        try:
            return open_store(folder)
        except Damaged as error:
            damage = error
            return None

    def fill(rough: Path) -> None:
        if damage is not None:
            notes.append(f"the token store {folder} was damaged ({damage}) and has been built again")
            say(notes[-1].replace("has been built", "is being built"))
        started = time.monotonic()
        total = _fill(corpus, rough, cache, made_from)
        say(f"token store built: {total:,} tokens in {time.monotonic() - started:.1f} s ({folder})")

    return find_or_build(folder, "token store", load, fill), notes


def _fill(corpus: Corpus, folder: Path, cache: Path, made_from: dict[str, Any]) -> int:
    """Write all files of the store; returns its number of tokens."""
    found = None if corpus.streamed or corpus.val_documents is not None else survey(corpus)
    if found is not None and not len(found.sizes):
        raise ConfigError(
            f"the corpus has no text in documents of data.min_chars={corpus.min_chars} characters or more; "
            "give more text or type data.min_chars=1"
        )
    layout = layout_of(corpus, found)
    if corpus.tokenizer == "auto":
        tokenizer = auto_tokenizer(corpus, layout, found, cache)
    else:
        tokenizer = pretrained(corpus.tokenizer, cache)
    if corpus.eot and tokenizer.eot_id is None:
        raise ConfigError(f"data.tokenizer={corpus.tokenizer} has no end-of-text token; type data.eot=false")
    tokenizer.save(folder)
    if layout == "document":
        assert found is not None
        writers = _write_in_hash_order(corpus, found, tokenizer, folder)
    else:
        dtype, budget = token_dtype(tokenizer.vocab_size), budget_of(corpus, layout)
        names = ["all"] if layout == "prefix" else ["train", "val"]
        writers = {name: StreamWriter(folder, name, dtype, budget.get(name)) for name in names}
        _encode(_sides(corpus, layout, writers), tokenizer, corpus.eot, writers)
    lengths = {name: writer.length for name, writer in writers.items()}
    check_lengths(corpus, layout, lengths)
    write_meta(folder, layout, [*writers], token_dtype(tokenizer.vocab_size), made_from)
    return sum(lengths.values())


def _sides(corpus: Corpus, layout: Layout, writers: Writers) -> Iterator[tuple[str, Piece]]:
    """The stream of each piece and the piece, in the corpus' order, until every stream is full."""
    most = {"train": corpus.documents}
    if corpus.val_documents is not None:
        most["val"] = corpus.val_documents[1] - corpus.val_documents[0] + 1
    documents = dict.fromkeys(writers, 0)

    def full(side: str) -> bool:
        return writers[side].full or documents[side] == most.get(side)

    filled = ["train"] if corpus.own_validation else [*writers]  # streams filled from the main text of the corpus
    joined: list[str] = []
    count = 0
    for number, piece in numbered(corpus):
        if all(map(full, filled)):
            break
        count = number + 1
        side = side_of(corpus, layout, number, piece.text)
        if full(side):
            continue
        documents[side] += piece.last
        if side == "val" and corpus.val_joint is not None:
            joined += [piece.text, corpus.val_joint] if piece.last else [piece.text]
        else:
            yield side, piece
    if corpus.val_documents is not None and not full("val"):
        refuse_val_documents(corpus.val_documents, count, corpus.documents)
    if corpus.documents is not None:
        check_documents(corpus.documents, documents["train"])
    if joined:
        yield "val", Piece("".join(joined[:-1]))
    if corpus.own_validation:
        for piece in corpus.pieces(validation=True):
            if full("val"):
                break
            yield "val", piece


def _write_in_hash_order(corpus: Corpus, found: Survey, tokenizer: Tokenizer, folder: Path) -> Writers:
    """Write both sides of a split by document in the order of hashes, so that a budget takes a fair sample.

    Documents are encoded in the corpus' order into rough streams, which are then copied in the order of hashes.
    """
    dtype, budget = token_dtype(tokenizer.vocab_size), budget_of(corpus, "document")
    validates = choose_validation(found, corpus.val_fraction)
    orders = {"train": hash_order(found, ~validates), "val": hash_order(found, validates)}
    if corpus.documents is not None:
        check_documents(corpus.documents, len(orders["train"]))
        orders["train"] = np.sort(orders["train"])[: corpus.documents]
    per_token, enough = BYTES_PER_TOKEN, False
    while not enough:
        chosen = {
            side: leading(order, found.sizes, budget[side] * per_token) if side in budget else order
            for side, order in orders.items()
        }
        wanted = np.zeros(len(validates), dtype=bool)
        wanted[np.concatenate([*chosen.values()])] = True
        rough = {side: StreamWriter(folder, f"{side}.rough", dtype) for side in orders}
        pieces = (("val" if validates[n] else "train", piece) for n, piece in numbered(corpus) if wanted[n])
        _encode(pieces, tokenizer, corpus.eot, rough)
        enough = all(
            rough[side].length >= needed or len(chosen[side]) == len(orders[side]) for side, needed in budget.items()
        )
        per_token *= 2
    writers = {side: StreamWriter(folder, side, dtype, budget.get(side)) for side in orders}
    for side, writer in writers.items():
        lengths = np.frombuffer(rough[side].document_tokens, dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        for place in np.argsort(np.argsort(chosen[side])):  # index of each chosen document in the rough stream
            left, text_bytes = int(lengths[place]), rough[side].document_bytes[place]
            offset = int(starts[place]) * dtype.itemsize
            while not writer.full:  # read, since mapped pages would count as memory of this process
                ids = np.fromfile(rough[side].path, dtype, min(left, COPIED), offset=offset)
                left, offset = left - len(ids), offset + ids.nbytes
                writer.write(ids, text_bytes, last=not left)
                if not left:
                    break
                text_bytes = 0
        writer.close()
    for path in folder.glob("*.rough.*"):
        path.unlink()
    return writers


def _encode(pieces: Iterable[tuple[str, Piece]], tokenizer: Tokenizer, eot: bool, writers: Writers) -> None:
    """Encode the pieces into their writers, then close the writers."""
    dtype = token_dtype(tokenizer.vocab_size)
    ending = np.array([tokenizer.eot_id] if eot else [], dtype=dtype)
    progress = Progress("encoding", "tokens")
    for side, piece, ids in _encoded(pieces, tokenizer, dtype):
        ids = np.append(ids, ending) if piece.last else ids
        writers[side].write(ids, len(piece.text.encode()), piece.last)
        progress.show(sum(writer.length for writer in writers.values()))
    progress.end()
    for writer in writers.values():
        writer.close()


def _encoded(
    pieces: Iterable[tuple[str, Piece]], tokenizer: Tokenizer, dtype: np.dtype
) -> Iterator[tuple[str, Piece, np.ndarray]]:
    """Each piece with its ids, in order. Two batches are encoded on all cores while the next one is read."""

    def encode(batch: list[tuple[str, Piece]]) -> list[tuple[str, Piece, np.ndarray]]:
        texts = [piece.text for _, piece in batch]
        encodings = tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [
            (side, piece, np.array(encoding.ids, dtype=dtype))
            for (side, piece), encoding in zip(batch, encodings, strict=True)
        ]

    def batches() -> Iterator[list[tuple[str, Piece]]]:
        batch, chars = [], 0
        for item in pieces:
            batch.append(item)
            chars += len(item[1].text)
            if chars >= BATCH_CHARS:
                yield batch
                batch, chars = [], 0
        yield batch

    pending: deque[Future[list[tuple[str, Piece, np.ndarray]]]] = deque()
    with ThreadPoolExecutor(2) as threads:  # these only wait: `tokenizers` has threads of its own
        for batch in batches():
            pending.append(threads.submit(encode, batch))
            if len(pending) > 2:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
