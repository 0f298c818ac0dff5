"""Rows of one continuous text, with the stored contexts of its tokens."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from newllm.data.dataset import Dataset, Rows
from newllm.data.facts import NOT_SCORED
from newllm.model.language_model import LanguageModel
from newllm.two_phase.contexts import Text


class StreamRows(Rows):
    """Consecutive rows of seq_len tokens of the stream `tokens` [N]: every token is read once.

    Labels are the next tokens, N - 1 in total. The last row is padded with the last token, without scored labels.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int) -> None:
        super().__init__(tokens, np.arange(0, max(len(tokens) - 1, 1), seq_len), seq_len, text=tokens)

    @property
    def scored(self) -> int:
        return len(self.tokens) - 1

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """Positions in the stream of the rows' inputs, int64 [B, seq_len]."""
        return self.starts[np.asarray(indices, dtype=np.int64), None] + np.arange(self.seq_len)

    def arrays(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positions, last = self.positions(indices), len(self.tokens) - 1
        inputs = self.tokens[np.minimum(positions, last)].astype(np.int64)
        labels = self.tokens[np.minimum(positions + 1, last)].astype(np.int64)
        labels[positions >= last] = NOT_SCORED
        return inputs, labels

    def joined(self, most: int | None = None) -> Rows:
        tokens = self.tokens if most is None else self.tokens[: most + 1]
        return StreamRows(tokens, max(len(tokens) - 1, 1))


class ContextRows(StreamRows):
    """The same rows with positions in the stream as inputs, instead of tokens.

    contexts: of the stream's tokens, [N, L, C] on the CPU. first: the first position. Positions of the validation text
    continue after those of the training text, so an input identifies its text.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, contexts: Tensor, first: int = 0) -> None:
        super().__init__(tokens, seq_len)
        self.contexts, self.first = contexts, first

    def arrays(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, labels = super().arrays(indices)
        return self.first + np.minimum(self.positions(indices), len(self.tokens) - 1), labels


def as_streams(data: Dataset) -> Dataset:
    """The same training and validation text as consecutive rows; raises ConfigError if data.split=chunks."""
    train, val = (StreamRows(data.stream(side), data.train.seq_len) for side in ("train", "val"))
    counts = {
        "data/train_tokens": train.scored,
        "data/val_tokens": val.scored,
        "data/train_rows": len(train),
        "data/val_rows": len(val),
        "data/bytes_per_token": int(data.tokenizer.token_bytes[val.tokens[1:]].sum()) / val.scored,
    }
    return replace(data, train=train, val=val, counts={**data.counts, **counts})


def with_contexts(data: Dataset, train: Tensor, val: Tensor) -> Dataset:
    """`data` with positions as inputs. train, val: the contexts [N, L, C] of the two texts."""
    stream, length = data.stream("train"), data.train.seq_len
    rows = ContextRows(data.stream("val"), length, val, first=len(stream))
    return replace(data, train=ContextRows(stream, length, train), val=rows)


class ContextReader(LanguageModel):
    """A context/token model in its second phase: `hidden` takes positions [B, T] instead of tokens and reads their
    stored contexts.

    It shares the model's parameters and their names. The windows of embeddings get no gradient, as published, where
    they are stored with the contexts.
    """

    def __init__(self, model: Any, data: Dataset) -> None:
        super().__init__()
        for name, part in model.named_children():
            self.add_module(name, part)
        object.__setattr__(self, "model", model)  # not as a submodule: its parts are registered above
        self.hidden_size, self.vocab_size, self.seq_len = model.hidden_size, model.vocab_size, model.seq_len
        self._train, self._val = data.train, data.val

    @property
    def head_weight(self) -> nn.Parameter:
        weight: nn.Parameter = self.model.head_weight  # type: ignore[union-attr, assignment]
        return weight

    def hidden(self, input_ids: Tensor, cache: None = None, start: int = 0) -> Tensor:
        """Final states [B, T, hidden_size] of the positions [B, T], all of the same text."""
        model: Any = self.model
        assert isinstance(self._val, ContextRows)
        rows = self._val if int(input_ids[0, 0]) >= self._val.first else self._train
        assert isinstance(rows, ContextRows)
        device = input_ids.device
        text = Text(model, rows.tokens, device)
        runs = list(_runs(input_ids.flatten().cpu().numpy() - rows.first))
        contexts = _gather(rows.contexts, runs).to(device)  # [B T, L, C]
        with torch.no_grad():
            windows = torch.cat([text(begin, end) for begin, end in runs])  # [B T, n E]
        states: Tensor = model.read(contexts, windows)
        return states.unflatten(0, input_ids.shape)


def _runs(positions: np.ndarray) -> Iterator[tuple[int, int]]:
    """[begin, end) of the runs of consecutive positions in `positions` [n]."""
    cuts = np.flatnonzero(np.diff(positions) != 1) + 1
    for part in np.split(positions, cuts):
        yield int(part[0]), int(part[-1]) + 1


def _gather(contexts: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """The concatenated contexts [n, L, C] of these runs."""
    size = sum(end - begin for begin, end in runs)
    # numpy's memory uses huge pages, which makes this several times as fast.
    room = np.empty(size * contexts[0].numel() * contexts.itemsize, np.uint8)
    out = torch.from_numpy(room).view(contexts.dtype).view(size, *contexts.shape[1:])
    return torch.cat([contexts[begin:end] for begin, end in runs], out=out)
