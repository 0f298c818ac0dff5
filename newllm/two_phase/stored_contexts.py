"""The second phase of a context/token model: its contexts are known, and what reads them is trained."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from newllm.model.base import LanguageModel
from newllm.two_phase.passes import Text
from newllm.two_phase.stream import Places

if TYPE_CHECKING:
    from newllm.two_phase.context_token import ContextToken
    from newllm.two_phase.contexts import Contexts, Side


class FromContexts(LanguageModel):
    """`model` as training sees it: its `hidden` takes places [B, T] of the text in place of tokens, and reads what is
    stored of their contexts instead of making them.

    Parameters and their names are the model's own. The windows of embeddings get no gradient: they belong to what is
    frozen with the contexts, as published, where they are stored beside them.

    streams: the tokens [N] of each side. Places of the validation text count on where those of training end.
    """

    model: "ContextToken"

    def __init__(
        self, model: "ContextToken", contexts: "Contexts", streams: "dict[Side, np.ndarray]", device: torch.device
    ) -> None:
        super().__init__()
        for name, part in model.named_children():
            self.add_module(name, part)
        object.__setattr__(self, "model", model)  # not a part: all of it is registered above
        self.hidden_size, self.vocab_size, self.seq_len = model.hidden_size, model.vocab_size, model.seq_len
        self.contexts, self.streams, self.device = contexts, streams, device
        self._first: dict[Side, int] = {"train": 0, "val": len(streams["train"])}
        self._texts = {side: Text(model, tokens, device) for side, tokens in streams.items()}

    @property
    def head_weight(self) -> nn.Parameter:
        return self.model.head_weight

    def rows(self, side: "Side") -> Places:
        """The rows of a side whose inputs `hidden` takes."""
        return Places(self.streams[side], self.seq_len, self._first[side])

    def hidden(self, input_ids: Tensor, cache: None = None, start: int = 0) -> Tensor:
        """States [B, T, hidden_size] that meet the head, of the places [B, T], all of one side."""
        side: Side = "val" if int(input_ids[0, 0]) >= self._first["val"] else "train"
        places = input_ids.flatten().cpu().numpy() - self._first[side]
        contexts = self.contexts.gather(side, places).to(self.device)  # [B T, L, C]
        with torch.no_grad():
            windows = torch.cat([self._texts[side](begin, end) for begin, end in _runs(places)])  # [B T, n E]
        return self.model.read(contexts, windows).unflatten(0, input_ids.shape)

    def of(self, model: "ContextToken") -> "FromContexts":
        """The same contexts under another copy of the model."""
        return FromContexts(model, self.contexts, self.streams, self.device)


def _runs(places: np.ndarray) -> Iterator[tuple[int, int]]:
    """[begin, end) of the stretches of consecutive places [n] that these are."""
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    for part in np.split(places, cuts):
        yield int(part[0]), int(part[-1]) + 1
