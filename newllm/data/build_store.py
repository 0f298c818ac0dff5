"""Fill a token store: one pass over the corpus (two for splits that survey it), in batches of bounded memory."""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from newllm.data.corpora.corpus import Corpus, Piece
from newllm.data.disk_cache import find_or_build, key_of, progress, say
from newllm.data.split import (
    Layout,
    Survey,
    budget_of,
    check_documents,
    check_lengths,
    choose_validation,
    hash_order,
    layout_of,
    leading,
    numbered,
    side_of,
    survey,
)
from newllm.data.token_store import Store, StreamWriter, open_store, token_dtype, write_meta
from newllm.data.tokenizer import Tokenizer, identity, pretrained, train_bpe
from newllm.errors import ConfigError, RunError

STORE_RULE = 2  # incremented when the same corpus comes to give another store
TOKENIZER_RULE = 1  # incremented when the same text comes to give another tokenizer
BATCH_CHARS = 1 << 20  # text encoded at once
COPIED_TOKENS = 1 << 20  # tokens copied at once
BYTES_PER_TOKEN = 6.0  # first guess of the text that a budget of tokens needs; doubled until it suffices

Writers = dict[str, StreamWriter]


@dataclass
class Losses:
    """What a tokenizer loses of the validation text."""

    tokens: int = 0
    unknown: int = 0
    changed: bool = False  # some text does not come back from its ids

    def add(self, tokenizer: Tokenizer, text: str, ids: np.ndarray) -> None:
        self.tokens += len(ids)
        self.unknown += int((ids == tokenizer.unknown_id).sum()) if tokenizer.unknown_id is not None else 0
        self.changed = self.changed or tokenizer.decode(ids.tolist()).removeprefix(" ") != text.removeprefix(" ")

    def __str__(self) -> str:
        if self.unknown:
            return f"loses text ({self.unknown / self.tokens:.2%} of the tokens are unknown words)"
        return "loses text (not all case, spaces and characters come back from its ids)" if self.changed else ""


def store_of(corpus: Corpus, cache: Path) -> tuple[Store, list[str]]:
    """The store of this corpus, tokenizer, budget and split, from the cache or built into it; notes for the user."""
    auto = ["auto", TOKENIZER_RULE, corpus.vocab_size, corpus.tokenizer_bytes]
    limited = corpus.rows != (None, None)
    made_from: dict[str, Any] = {
        "rule": STORE_RULE,
        "corpus": corpus.fingerprint(),
        "tokenizer": auto if corpus.tokenizer == "auto" else identity(corpus.tokenizer),
        "rows": corpus.rows if limited else None,
        "seq_len": corpus.seq_len if limited else None,
        "by": "document" if corpus.split == "document" else "rows",
        "val_fraction": corpus.val_fraction,
        "eot": corpus.eot,
        "min_chars": corpus.min_chars,
    }
    if (corpus.documents, corpus.val_documents, corpus.val_samples) != (None, None, None):
        names = ("documents", "val_documents", "val_joint", "val_samples")
        made_from["apart"] = {name: getattr(corpus, name) for name in names}
    folder = cache / "stores" / key_of(**made_from)

    def fill(new: Path) -> None:
        with _unchanged(corpus, made_from["corpus"]):
            _fill(corpus, new, cache, made_from)

    return find_or_build(folder, "token store", open_store, fill)


@contextmanager
def _unchanged(corpus: Corpus, fingerprint: str) -> Iterator[None]:
    """Raises RunError if the text changes while the block reads it, whatever the block makes of that."""

    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    if corpus.fingerprint() != fingerprint:
        raise RunError(
            "the text has changed while it was read; type the same command again when it is complete"
        ) from error
    if error is not None:
        raise error


def _fill(corpus: Corpus, folder: Path, cache: Path, made_from: dict[str, Any]) -> None:
    """Write all files of the store."""
    started = time.monotonic()
    documents = None if corpus.streamed or corpus.val_documents is not None else survey(corpus)
    if documents is not None and not len(documents.sizes):
        raise ConfigError(
            f"the corpus has no text in documents of data.min_chars={corpus.min_chars} characters or more; "
            "give more text or type data.min_chars=1"
        )
    layout = layout_of(corpus, documents)
    if corpus.tokenizer == "auto":
        tokenizer = _auto_tokenizer(corpus, layout, documents, cache, made_from["corpus"])
    else:
        tokenizer = pretrained(corpus.tokenizer, cache)
    if corpus.eot and tokenizer.eot_id is None:
        raise ConfigError(
            f"data.tokenizer={corpus.tokenizer} names no end-of-text token, which separates documents; type "
            "data.eot=false, or add a tokenizer_config.json with its eos_token"
        )
    tokenizer.save(folder)
    dtype = token_dtype(tokenizer.vocab_size)
    losses = Losses()
    if layout == "document":
        assert documents is not None
        writers = _write_in_hash_order(corpus, documents, tokenizer, folder, losses)
    else:
        budget, names = budget_of(corpus, layout), ["all"] if layout == "prefix" else ["train", "val"]
        writers = {
            name: StreamWriter(folder, name, dtype, budget.get(name), _counts_bytes(name, tokenizer)) for name in names
        }
        _encode(_sides(corpus, layout, writers), tokenizer, corpus.eot, writers, losses)
    lengths = {name: writer.length for name, writer in writers.items()}
    check_lengths(corpus, layout, lengths)
    write_meta(folder, layout, [*writers], dtype, made_from, str(losses))
    seconds = time.monotonic() - started
    say(f"token store built: {sum(lengths.values()):,} tokens in {seconds:.1f} s ({folder.with_suffix('')})")


def _counts_bytes(stream: str, tokenizer: Tokenizer) -> bool:
    """Whether a stream has the bytes of each token: validation text needs them where ids do not tell."""
    return not stream.startswith("train") and not tokenizer.exact


def _auto_tokenizer(
    corpus: Corpus, layout: Layout, documents: Survey | None, cache: Path, fingerprint: str
) -> Tokenizer:
    """The tokenizer of this corpus, split and vocabulary, from the cache or trained into it.

    Trained on text of the training side only: about tokenizer_bytes in whole documents after a survey, else at most
    tokenizer_bytes. It does not depend on the training budget, unless that decides which text validates.
    """
    limit = corpus.tokenizer_bytes
    if layout == "prefix":  # bytes certain to be training text, since a token is at least one byte
        if corpus.rows[0] is not None:
            limit = min(limit, corpus.rows[0] * corpus.seq_len)
        elif documents is not None:
            limit = min(limit, int((1 - corpus.val_fraction) * documents.sizes.sum()))

    def training_text() -> Iterator[str]:
        if layout == "document":
            assert documents is not None
            order = hash_order(documents, ~choose_validation(documents, corpus.val_fraction))
            chosen = np.zeros(len(documents.sizes), dtype=bool)
            chosen[leading(order, documents.sizes, limit)] = True
            yield from (piece.text for number, piece in numbered(corpus) if chosen[number])
            return
        left = limit
        for number, piece in numbered(corpus):
            if side_of(corpus, layout, number, piece.text) != "val":
                content = piece.text.encode()[:left]
                yield content.decode("utf-8", "ignore")
                left -= len(content) + 1  # counts end-of-text as one byte, so that the bound on tokens includes it
                if left <= 0:
                    return

    def train(folder: Path) -> None:
        texts = training_text()
        first = next(texts, "")  # an unreadable corpus raises here, before the announcement
        say(f"training a byte-level BPE tokenizer of {corpus.vocab_size} ids")
        with _unchanged(corpus, fingerprint):
            train_bpe(chain([first], texts), corpus.vocab_size).save(folder)

    key = key_of(
        rule=TOKENIZER_RULE,
        corpus=fingerprint,
        vocab_size=corpus.vocab_size,
        layout=layout,
        bytes=limit,
        val_fraction=corpus.val_fraction,
        min_chars=corpus.min_chars,
        **({"val_documents": corpus.val_documents} if layout == "numbered" else {}),
    )
    return find_or_build(cache / "tokenizers" / key, "tokenizer", Tokenizer.load, train)[0]


def _sides(corpus: Corpus, layout: Layout, writers: Writers) -> Iterator[tuple[str, Piece]]:
    """The stream of each piece and the piece, in the corpus' order, until every stream is full."""
    limits = {"train": corpus.documents}
    if corpus.val_documents is not None:
        limits["val"] = corpus.val_documents[1] - corpus.val_documents[0] + 1
    written = dict.fromkeys(writers, 0)  # documents

    def full(side: str) -> bool:
        return writers[side].full or written[side] == limits.get(side)

    filled = ["train"] if corpus.own_validation else [*writers]  # streams filled from the main text of the corpus
    joined: list[str] = []  # validation documents that become one
    count = 0
    for number, piece in numbered(corpus):
        if all(map(full, filled)):
            break
        count = number + 1
        side = side_of(corpus, layout, number, piece.text)
        if full(side):
            continue
        written[side] += piece.last
        if side == "val" and corpus.val_joint is not None:
            joined += [piece.text, corpus.val_joint] if piece.last else [piece.text]
        else:
            yield side, piece
    if corpus.val_documents is not None and not full("val"):
        first, last = corpus.val_documents
        shift = last - count + 1
        fits = first - shift >= max(corpus.documents or 0, 1)
        nearer = f"type 'data.val_documents=[{first - shift},{last - shift}]', or " if fits else ""
        raise ConfigError(
            f"data.val_documents=[{first},{last}] needs document {last} and the corpus has {count:,}, numbered from 0; "
            f"{nearer}give more text"
        )
    if corpus.documents is not None:
        check_documents(corpus.documents, written["train"])
    if joined:
        yield "val", Piece("".join(joined[:-1]))
    if corpus.own_validation:
        for piece in corpus.pieces(validation=True):
            if full("val"):
                break
            yield "val", piece


def _write_in_hash_order(
    corpus: Corpus, documents: Survey, tokenizer: Tokenizer, folder: Path, losses: Losses
) -> Writers:
    """Write both sides of a split by document in the order of hashes, so that a budget takes a fair sample.

    Documents are encoded in the corpus' order into rough streams, which are then copied in the order of hashes.
    """
    dtype, budget = token_dtype(tokenizer.vocab_size), budget_of(corpus, "document")
    validates = choose_validation(documents, corpus.val_fraction)
    orders = {"train": hash_order(documents, ~validates), "val": hash_order(documents, validates)}
    if corpus.documents is not None:
        check_documents(corpus.documents, len(orders["train"]))
        orders["train"] = np.sort(orders["train"])[: corpus.documents]
    bytes_per_token, enough = BYTES_PER_TOKEN, False
    while not enough:
        chosen = {
            side: leading(order, documents.sizes, budget[side] * bytes_per_token) if side in budget else order
            for side, order in orders.items()
        }
        wanted = np.zeros(len(validates), dtype=bool)
        wanted[np.concatenate([*chosen.values()])] = True
        counting = {side: _counts_bytes(side, tokenizer) for side in orders}
        rough = {side: StreamWriter(folder, f"{side}.rough", dtype, None, counting[side]) for side in orders}
        pieces = (("val" if validates[n] else "train", piece) for n, piece in numbered(corpus) if wanted[n])
        _encode(pieces, tokenizer, corpus.eot, rough, losses)
        enough = all(
            rough[side].length >= needed or len(chosen[side]) == len(orders[side]) for side, needed in budget.items()
        )
        bytes_per_token *= 2
    writers = {side: StreamWriter(folder, side, dtype, budget.get(side), counting[side]) for side in orders}
    for side, writer in writers.items():
        lengths = np.frombuffer(rough[side].document_tokens, dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        for place in np.argsort(np.argsort(chosen[side])):  # index of each chosen document in the rough stream
            start, length = int(starts[place]), int(lengths[place])
            for done in range(0, max(length, 1), COPIED_TOKENS):
                if writer.full:
                    break
                count = min(length - done, COPIED_TOKENS)
                # Read, since mapped pages would count as memory of this process.
                ids = np.fromfile(rough[side].path, dtype, count, offset=(start + done) * dtype.itemsize)
                counts, path = None, rough[side].bytes_path
                if path is not None:
                    counts = np.fromfile(path, np.uint32, count, offset=(start + done) * 4)
                last = done + count == length
                writer.write(ids, 0 if done else rough[side].document_bytes[place], last, counts)
        writer.close()
    for path in folder.glob("*.rough.*"):
        path.unlink()
    return writers


def _encode(
    pieces: Iterable[tuple[str, Piece]], tokenizer: Tokenizer, eot: bool, writers: Writers, losses: Losses
) -> None:
    """Encode the pieces into their writers, then close the writers."""
    dtype = token_dtype(tokenizer.vocab_size)
    ending = np.array([tokenizer.eot_id] if eot else [], dtype=dtype)
    counting = {side for side, writer in writers.items() if writer.bytes_path is not None}
    with progress("encoding", "tokens") as show:
        for side, piece, ids, counts in _encoded(pieces, tokenizer, dtype, counting):
            if counts is not None:
                losses.add(tokenizer, piece.text, ids)
                counts = np.append(counts, [0] * len(ending)) if piece.last else counts
            ids = np.append(ids, ending) if piece.last else ids
            writers[side].write(ids, len(piece.text.encode()), piece.last, counts)
            show(sum(writer.length for writer in writers.values()))
    for writer in writers.values():
        writer.close()


Encoded = tuple[str, Piece, np.ndarray, np.ndarray | None]


def _encoded(
    pieces: Iterable[tuple[str, Piece]], tokenizer: Tokenizer, dtype: np.dtype, counting: Collection[str] = ()
) -> Iterator[Encoded]:
    """Each piece with its ids, in order, and in the streams `counting` with the bytes that each id stands for.

    Two batches are encoded on all cores while the next one is read.
    """

    def encode(batch: list[tuple[str, Piece]]) -> list[Encoded]:
        fast = [piece.text for side, piece in batch if side not in counting]
        plain = iter(tokenizer.backend.encode_batch_fast(fast, add_special_tokens=False))
        counted = iter(tokenizer.encode_with_bytes([piece.text for side, piece in batch if side in counting]))
        encoded: list[Encoded] = []
        for side, piece in batch:
            if side in counting:
                ids, counts = next(counted)
                encoded.append((side, piece, ids.astype(dtype), counts))
            else:
                encoded.append((side, piece, np.array(next(plain).ids, dtype=dtype), None))
        return encoded

    pending: deque[Future[list[Encoded]]] = deque()
    batch: list[tuple[str, Piece]] = []
    chars = 0
    with ThreadPoolExecutor(2) as threads:  # these only wait: `tokenizers` has threads of its own
        for side, piece in pieces:
            batch.append((side, piece))
            chars += len(piece.text)
            if chars >= BATCH_CHARS:
                pending.append(threads.submit(encode, batch))
                batch, chars = [], 0
                if len(pending) > 2:
                    yield from pending.popleft().result()
        pending.append(threads.submit(encode, batch))
        while pending:
            yield from pending.popleft().result()
