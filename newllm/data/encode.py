"""Texts to ids as fast as the machine allows: a moment in this process, then in one process for each core.

In processes rather than threads, since cutting text and collecting ids hold Python's lock. They are fresh ones
(`newllm.data.encode_process`) that import neither torch nor the caller's main module, and end with this one.
"""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, NamedTuple, TypeVar

import numpy as np

from newllm.data.tokenizer import Tokenizer
from newllm.data.words import Words, cutting
from newllm.errors import RunError

Label = TypeVar("Label")

BATCH_BYTES = 1 << 20  # text encoded at once
PATIENCE = 0.5  # seconds of encoding before other processes are started, which takes about as long
MOST = 16  # processes; one reader feeds no more


class Texts:
    """A tokenizer's ids of texts, as arrays of `dtype`, word by word where it splits text as GPT-2 does."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self._backend, self._dtype = tokenizer.backend, dtype
        pattern = cutting(tokenizer.spec)
        self._words = Words(tokenizer.backend, pattern, dtype) if pattern else None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._words is not None:
            return [np.frombuffer(self._words.encode(text), dtype=self._dtype) for text in texts]
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self._dtype) for encoding in encodings]


class Encoded(NamedTuple):
    """ids of a text, and the UTF-8 bytes it has."""

    size: int
    ids: np.ndarray


def encode(
    items: Iterable[tuple[Label, str]], tokenizer: Tokenizer, folder: Path, dtype: np.dtype
) -> Generator[tuple[Label, Encoded], None, None]:
    """Each (label, text) encoded, in order, while the next ones are read; memory is bounded.

    folder: where the tokenizer is saved.
    Raises RunError if another process that encodes ends before its work.
    """
    here = Texts(tokenizer, dtype)
    others: _Processes | None = None
    pending: deque[tuple[list[Label], Future[list[Encoded]]]] = deque()
    spent = 0.0
    try:
        for batch in _batches(items):
            labels, texts = [label for label, _ in batch], [text for _, text in batch]
            if others is not None:
                if len(pending) == 2 * others.count:
                    yield from _done(pending)
                pending.append((labels, others.submit(texts)))
                continue
            began = time.monotonic()
            found = [Encoded(len(text.encode()), ids) for text, ids in zip(texts, here.encode(texts), strict=True)]
            spent += time.monotonic() - began
            yield from zip(labels, found, strict=True)
            if spent > PATIENCE and _cores() > 1:
                others = _Processes(folder, dtype, min(_cores(), MOST))
                del here
        while pending:
            yield from _done(pending)
    finally:
        if others is not None:
            others.close()


def _done(pending: "deque[tuple[list[Label], Future[list[Encoded]]]]") -> Iterator[tuple[Label, Encoded]]:
    labels, future = pending.popleft()
    return zip(labels, future.result(), strict=True)


def _batches(items: Iterable[tuple[Label, str]]) -> Iterator[list[tuple[Label, str]]]:
    batch: list[tuple[Label, str]] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += len(item[1])
        if chars >= BATCH_BYTES:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


class _Processes:
    """Processes that encode, with a thread each in this one: it hands over a batch and waits for the answer."""

    def __init__(self, folder: Path, dtype: np.dtype, count: int) -> None:
        self.count, self._dtype = count, dtype
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # where this process found its modules
        self._all = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", "newllm.data.encode_process", str(folder), dtype.name],
                env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for this process; they end when it closes their input
            )
            for _ in range(count)
        ]
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in self._all:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count)

    def submit(self, texts: Sequence[str]) -> "Future[list[Encoded]]":
        return self._threads.submit(self._encode, texts)

    def _encode(self, texts: Sequence[str]) -> list[Encoded]:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        contents = [text.encode() for text in texts]
        try:
            write_parts(process.stdin, contents)
            answers = read_parts(process.stdout)
            if answers is None:
                raise EOFError
        except (OSError, EOFError):
            raise RunError(
                f"a process that encodes text ended with status {process.wait()}, for instance because memory ran "
                "out; free some and type the same command again"
            ) from None
        finally:
            self._idle.put(process)  # a dead one too: whoever waits for it must learn so
        return [
            Encoded(len(content), np.frombuffer(ids, dtype=self._dtype))
            for content, ids in zip(contents, answers, strict=True)
        ]

    def close(self) -> None:
        for process in self._all:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            with suppress(OSError), process:  # of what was still to be written
                pass


def write_parts(stream: IO[bytes], parts: Sequence[bytes]) -> None:
    """Their number, their lengths, and the parts; read by `read_parts`."""
    stream.write(np.array([len(parts), *map(len, parts)], dtype=np.int64).tobytes())
    stream.write(b"".join(parts))
    stream.flush()


def read_parts(stream: IO[bytes]) -> list[memoryview] | None:
    """What `write_parts` wrote; None at the end of the stream. Raises EOFError if it ends within."""
    head = stream.read(8)
    if not head:
        return None
    lengths = np.frombuffer(_exactly(stream, 8 * int.from_bytes(head, sys.byteorder)), dtype=np.int64)
    whole = memoryview(_exactly(stream, int(lengths.sum())))
    ends = np.cumsum(lengths)
    return [whole[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
