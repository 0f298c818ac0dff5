"""Hooks on the queries, keys and values of a forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from newllm.model import LanguageModel


@contextmanager
def observing(model: LanguageModel, see: Callable[[int, dict[str, Tensor]], None]) -> Iterator[None]:
    """Within the context, every forward pass calls ``see(layer, tensors)`` once per layer."""
    attentions: list[Any] = [block.attention for block in model.blocks]
    before = [attention.observer for attention in attentions]
    try:
        for layer, attention in enumerate(attentions):
            attention.observer = lambda tensors, layer=layer: see(layer, tensors)
        yield
    finally:
        for attention, observer in zip(attentions, before, strict=True):
            attention.observer = observer
