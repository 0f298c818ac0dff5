"""The model and data under evaluation, the findings of an evaluator, and the loop over evaluators."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from newllm.build import build
from newllm.data.dataset import Dataset, Rows
from newllm.data.facts import IGNORED
from newllm.errors import RunError
from newllm.evaluation.fingerprint import fingerprint
from newllm.evaluation.ngrams import Order
from newllm.model import LanguageModel
from newllm.model.cast import cast_products
from newllm.training.cross_entropy import token_losses

Table = list[dict[str, Any]]

_ROWS = 4096  # rows whose labels are in memory at once
_COUNTED = 20_000_000  # training labels at most for the frequencies of tokens
TOKENS = 4096  # smallest batch in tokens: large enough that matrix products are not bound by reading weights


@dataclass
class Findings:
    """Findings of an evaluator or another part of a run."""

    title: str
    metrics: dict[str, float] = field(default_factory=dict)  # results.json: name -> number
    tables: dict[str, Table] = field(default_factory=dict)  # tables/<name>.csv
    body: list[str | Table] = field(default_factory=list)  # the console section: lines and small tables
    # Metric -> `fingerprint` of the tokens that it scores. None: `evaluate` takes that of the validation rows and of
    # all options. A metric that scores no text is left out.
    scored: dict[str, str] | None = None

    @property
    def results(self) -> dict[str, float | str]:
        """The metrics, and the fingerprints under ``scored/<metric>``: what goes into results.json."""
        return {**self.metrics, **{f"scored/{name}": value for name, value in (self.scored or {}).items()}}


class Evaluator(ABC):
    """Base class of evaluators: measures a trained model. Its options are those of its constructor."""

    @abstractmethod
    def __call__(self, subject: "Subject") -> Findings: ...

    def check(self, data: Dataset, model: LanguageModel) -> None:
        """Raises ConfigError if the options do not suit this text or this model; called before training."""
        return None


@dataclass
class Subject:
    """A model with its evaluation data. Results that several evaluators need are computed once.

    training_data: the data as training reads it, if the stages before training made it; else the model makes it of
    `data` when needed.
    """

    model: LanguageModel
    data: Dataset
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    batch_size: int
    config: DictConfig
    training_data: Dataset | None = None
    _cast: LanguageModel | None = field(default=None, init=False, repr=False)

    @property
    def tokens(self) -> int:
        """Largest batch in tokens: that of training, which needed more memory per token."""
        return max(TOKENS, self.batch_size * self.model.seq_len)

    def batches(
        self, rows: Rows | None = None, size: int | None = None, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels [B, T] on the device, in order: of `rows` (validation rows by default), up to `limit`.

        size: rows per batch; by default as many as `tokens` allows, but at least one.
        """
        rows = self.data.val if rows is None else rows
        end = len(rows) if limit is None else min(limit, len(rows))
        if end and size is None:
            size = max(1, self.tokens // rows.batch(np.arange(1))[0].shape[1])
        for start in range(0, end, size or 1):
            inputs, labels = rows.batch(np.arange(start, min(start + (size or 1), end)))
            yield inputs.to(self.device), labels.to(self.device)

    @contextmanager
    def computing(self) -> Iterator[LanguageModel]:
        """The model for forward passes without gradients in the run's precision, with weights cast only once."""
        with torch.inference_mode(), self.autocast():
            device = self.device.type
            if not torch.is_autocast_enabled(device):
                yield self.model
                return
            self._cast = self._cast or cast_products(self.model, torch.get_autocast_dtype(device))
            yield self._cast

    def as_trained(self) -> Dataset:
        """The data as training reads it."""
        if self.training_data is None:
            with self.autocast():
                bf16 = torch.is_autocast_enabled(self.device.type)
            self.training_data = self.model.with_stage_inputs(self.data, self.device, "bf16" if bf16 else "fp32")
        return self.training_data

    @property
    def rows(self) -> Rows:
        """The validation rows as training reads them, for `reading`."""
        return self.as_trained().val

    @contextmanager
    def reading(self) -> Iterator[LanguageModel]:
        """Like `computing`, but the model takes `rows`."""
        with self.computing() as model:
            yield model.model_for_rows(self.as_trained())

    def observe(self, see: Callable[[int, dict[str, Tensor]], None], batches: int, batch_size: int) -> None:
        """Read the first validation rows, calling ``see(layer, tensors)`` for each batch and layer."""
        with torch.inference_mode(), observing(self.model, see):
            for inputs, _ in self.batches(size=batch_size, limit=batches * batch_size):
                with self.autocast():
                    self.model.hidden(inputs)

    def losses_of(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Nats of each label [B, T] in fp32, 0 where the label is -100.

        Logits are computed in pieces and only at labelled positions.
        """
        with self.computing() as model:
            return _losses(model, inputs, labels)

    def token_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Nats float32 [N, T] of the validation labels, and a bool mask [N, T] of the scored ones."""
        return self._scored

    def scored_bytes(self) -> int:
        """UTF-8 bytes of the text that the scored validation labels stand for."""
        return self.data.val_bytes

    @cached_property
    def _scored(self) -> tuple[np.ndarray, np.ndarray]:
        self.model.eval()
        losses, masks = [], []
        for batch_inputs, batch_labels in self.batches(self.rows):
            with self.reading() as model:
                losses.append(_losses(model, batch_inputs, batch_labels).cpu().numpy())
            masks.append((batch_labels != IGNORED).cpu().numpy())
        return np.concatenate(losses), np.concatenate(masks)

    def bits_per_byte(self) -> float:
        """Sum of the nats of all scored labels / ln 2 / their UTF-8 bytes."""
        losses, mask = self.token_losses()
        return float(losses[mask].sum(dtype=np.float64) / np.log(2) / max(self.scored_bytes(), 1))

    @cached_property
    def scored_rows(self) -> str:
        """Fingerprint of the scored validation labels, of which val/loss is the mean."""
        rows, digest = self.data.val, hashlib.sha256(self.data.tokenizer.digest.encode())
        for start in range(0, len(rows), _ROWS):
            labels = rows.arrays(np.arange(start, min(start + _ROWS, len(rows))))[1]
            digest.update(labels[labels != IGNORED].tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def unigram_bits_per_byte(self) -> float:
        """Bits per byte of a model that knows only how frequent each token is in the training rows.

        Absolute discounting; unseen tokens share the discounted mass evenly. Counts the first 20 million labels.
        """
        train, val, vocab = self.data.train, self.data.val, self.model.vocab_size
        length = val.arrays(np.arange(1))[1].shape[1]
        counts, scored = (
            _label_counts(rows, most, vocab) for rows, most in ((train, max(_COUNTED // length, 1)), (val, len(val)))
        )
        seen = np.flatnonzero(counts)
        ids = np.flatnonzero(scored)
        p = Order(seen, counts[seen], vocab).interpolate(ids, np.full(len(ids), 1 / vocab))
        return float(-(scored[ids] * np.log2(p)).sum() / max(self.scored_bytes(), 1))


def _label_counts(rows: Rows, most: int, vocab: int) -> np.ndarray:
    """How often each id is a scored label in the first `most` rows, int64 [vocab]."""
    counts, end = np.zeros(vocab, dtype=np.int64), min(most, len(rows))
    for start in range(0, end, _ROWS):
        labels = rows.arrays(np.arange(start, min(start + _ROWS, end)))[1]
        counts += np.bincount(labels[labels != IGNORED], minlength=vocab)
    return counts


def _losses(model: LanguageModel, inputs: Tensor, labels: Tensor) -> Tensor:
    scored = labels != IGNORED
    losses = torch.zeros(labels.shape, device=labels.device)
    losses[scored] = token_losses(model.hidden(inputs)[scored], model.head_weight, labels[scored])
    return losses


@contextmanager
def observing(model: LanguageModel, see: Callable[[int, dict[str, Tensor]], None]) -> Iterator[None]:
    """Within the context, every forward pass calls ``see(layer, tensors)`` once per layer, with what its attention
    shows: queries, keys and others."""
    attentions: list[Any] = [block.attention for block in model.blocks]
    before = [attention.observer for attention in attentions]
    try:
        for layer, attention in enumerate(attentions):
            attention.observer = partial(see, layer)
        yield
    finally:
        for attention, observer in zip(attentions, before, strict=True):
            attention.observer = observer


def evaluate(nodes: Mapping[str, Any] | None, subject: Subject) -> Iterator[Findings]:
    """Build and call the evaluators of `cfg.eval` in order, lazily.

    An evaluator that fails makes the run fail: no number may go missing silently. Raises RunError if two evaluators
    report a metric or table under the same name.

    All findings say what they scored (`Findings.scored`): one entry of the evaluator's name stands for all metrics
    that begin with it.
    """
    training = subject.model.training
    subject.model.eval()
    owner: dict[str, str] = {}
    try:
        for name, node in (nodes or {}).items():
            findings = build(node, Evaluator)(subject)
            for metric in [*findings.metrics, *(f"tables/{table}.csv" for table in findings.tables)]:
                if metric in owner:
                    raise RunError(
                        f"eval.{name} reports {metric}, which eval.{owner[metric]} has reported already: "
                        f"remove one of them from 'eval=[...]' or rename its output"
                    )
                owner[metric] = name
            if findings.scored is None:
                options = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
                scored = fingerprint(subject.scored_rows, subject.data.val.seq_len, options)
                inside = all(metric.startswith(f"{name}/") for metric in findings.metrics)
                findings.scored = dict.fromkeys([name] if inside else findings.metrics, scored)
            yield findings
    finally:
        subject.model.train(training)
