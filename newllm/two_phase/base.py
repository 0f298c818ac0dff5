"""What a first phase is: it trains a part of the model by a rule of its own, freezes it, and reports."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from omegaconf import DictConfig
from torch import nn

from newllm.console import Console
from newllm.data import Dataset
from newllm.runtime import Runtime
from newllm.store.run_directory import RunDirectory
from newllm.training.loggers import Logger
from newllm.training.precision import Precision
from newllm.training.signals import Signals

if TYPE_CHECKING:
    from newllm.two_phase.contexts import Contexts

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """What a first phase works with. `model` is as built from the configuration, its embeddings filled in: a checkpoint
    of the second phase is loaded afterwards."""

    cfg: DictConfig
    model: nn.Module
    data: Dataset
    device: torch.device
    precision: Precision
    runtime: Runtime
    directory: RunDirectory
    console: Console
    signals: Signals
    logger: Logger


@dataclass
class Outcome:
    """What a first phase leaves, beside the frozen weights in the model."""

    metrics: dict[str, float] = field(default_factory=dict)  # results.json: name -> number
    tables: dict[str, Table] = field(default_factory=dict)  # tables/<name>.csv
    body: list[str | Table] = field(default_factory=list)  # the console section: lines and small tables
    contexts: "Contexts | None" = None  # what the second phase reads, where the first one stores it


class FirstPhase(ABC):
    """One way to train a part of the model before everything else.

    A phase's lines come first in metrics.jsonl and carry its name under "phase"; it keeps them right by itself
    (newllm.two_phase.lines), whatever an earlier attempt has left there, and touches none that come after them.
    """

    name: ClassVar[str]

    @abstractmethod
    def check(self, cfg: DictConfig, model: nn.Module, data: Dataset) -> None:
        """Raise ConfigError if this model or this text is nothing for the phase. Nothing has been written yet."""

    @abstractmethod
    def run(self, work: Work) -> Outcome:
        """Do the phase, go on where it broke off, or take its stored result: the same bits in all three cases.

        Blocks; asks `work.signals` between portions of work. Leaves the part's weights in the model, frozen.
        """
