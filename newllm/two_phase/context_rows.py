"""A text as one stream in rows that follow one another, with the contexts of its tokens where these are known."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from newllm.data.dataset import Dataset, Rows
from newllm.data.facts import NOT_SCORED
from newllm.data.tokenizer import Tokenizer
from newllm.model.language_model import LanguageModel
from newllm.two_phase.contexts import Text

_PORTION = 1 << 20  # tokens


class StreamRows(Rows):
    """Rows of seq_len tokens of the stream `tokens` [N], in order and without gaps: every token is read once.

    Labels are the next tokens, N - 1 in all. The last row is filled up with the stream's last token, whose labels are
    not scored.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int) -> None:
        super().__init__(tokens, np.arange(0, max(len(tokens) - 1, 1), seq_len), seq_len, text=tokens)

    @property
    def scored(self) -> int:
        return len(self.tokens) - 1

    def places(self, indices: np.ndarray) -> np.ndarray:
        """int64 [B, seq_len]: where in the stream the rows' inputs are."""
        return self.starts[np.asarray(indices, dtype=np.int64), None] + np.arange(self.seq_len)

    def arrays(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places, last = self.places(indices), len(self.tokens) - 1
        inputs = self.tokens[np.minimum(places, last)].astype(np.int64)
        labels = self.tokens[np.minimum(places + 1, last)].astype(np.int64)
        labels[places >= last] = NOT_SCORED
        return inputs, labels

    def joined(self, most: int | None = None) -> Rows:
        tokens = self.tokens if most is None else self.tokens[: most + 1]
        return StreamRows(tokens, max(len(tokens) - 1, 1))


class ContextRows(StreamRows):
    """The same rows with places of the stream as inputs, in place of tokens.

    contexts: of the stream's tokens, [N, L, C] on the CPU. first: the number of the first place. Places of the
    validation text count on where those of training end, so that an input tells which of the two it is of.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, contexts: Tensor, first: int = 0) -> None:
        super().__init__(tokens, seq_len)
        self.contexts, self.first = contexts, first

    def arrays(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, labels = super().arrays(indices)
        return self.first + np.minimum(self.places(indices), len(self.tokens) - 1), labels


def as_streams(data: Dataset) -> Dataset:
    """The same text in rows that follow one another, for training and for validation.

    Raises ConfigError where data.split=chunks has scattered it.
    """
    train, val = (StreamRows(data.stream(side), data.train.seq_len) for side in ("train", "val"))
    counts = {
        "data/train_tokens": train.scored,
        "data/val_tokens": val.scored,
        "data/train_rows": len(train),
        "data/val_rows": len(val),
        "data/bytes_per_token": _bytes(val.tokens[1:], data.tokenizer) / val.scored,
    }
    return replace(data, train=train, val=val, counts={**data.counts, **counts})


def with_contexts(data: Dataset, train: Tensor, val: Tensor) -> Dataset:
    """`data` with places as inputs. train, val: the contexts of the two texts, [N, L, C]."""
    stream, length = data.stream("train"), data.train.seq_len
    rows = ContextRows(data.stream("val"), length, val, first=len(stream))
    return replace(data, train=ContextRows(stream, length, train), val=rows)


def _bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    portions = (tokens[start : start + _PORTION] for start in range(0, len(tokens), _PORTION))
    return sum(int(tokenizer.token_bytes[portion].sum()) for portion in portions)


class ContextReader(LanguageModel):
    """A context/token model as its second phase trains it: `hidden` takes places [B, T] of the text in place of tokens
    and reads the contexts that are stored of them.

    Parameters and their names are the model's own. The windows of embeddings get no gradient: they belong to what is
    frozen with the contexts, as published, where they are stored beside them.
    """

    def __init__(self, model: Any, data: Dataset) -> None:
        super().__init__()
        for name, part in model.named_children():
            self.add_module(name, part)
        object.__setattr__(self, "model", model)  # not a part: all of it is registered above
        self.hidden_size, self.vocab_size, self.seq_len = model.hidden_size, model.vocab_size, model.seq_len
        self._train, self._val = data.train, data.val

    @property
    def head_weight(self) -> nn.Parameter:
        weight: nn.Parameter = self.model.head_weight  # type: ignore[union-attr, assignment]
        return weight

    def hidden(self, input_ids: Tensor, cache: None = None, start: int = 0) -> Tensor:
        """States [B, T, hidden_size] that meet the head, of the places [B, T], all of one side."""
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


def _runs(places: np.ndarray) -> Iterator[tuple[int, int]]:
    """[begin, end) of the stretches of consecutive places [n] that these are."""
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    for part in np.split(places, cuts):
        yield int(part[0]), int(part[-1]) + 1


def _gather(contexts: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """The contexts [n, L, C] of these stretches, one after another."""
    size = sum(end - begin for begin, end in runs)
    # Into memory of numpy's, which asks the system for huge pages: several times as fast.
    room = np.empty(size * contexts[0].numel() * contexts.itemsize, np.uint8)
    out = torch.from_numpy(room).view(contexts.dtype).view(size, *contexts.shape[1:])
    return torch.cat([contexts[begin:end] for begin, end in runs], out=out)
