"""The context of one run: what its stages, training loop and evaluators work with."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig

from newllm.console import Console
from newllm.data import Dataset
from newllm.loggers import Loggers
from newllm.model import LanguageModel
from newllm.precision import Precision
from newllm.runtime import Place, Runtime
from newllm.store.environment import NumericSettings
from newllm.store.run_directory import RunDirectory
from newllm.training.optimizer import AdamW
from newllm.training.signals import Signals
from newllm.training.step import Numbers, Piece, Step
from newllm.training.trainer import Trainer


class StepMaker(Protocol):
    """Makes the steps of a run together with the steps of `others` other runs."""

    others: int

    def __call__(self, step: Step, pieces: list[Piece], rate: float) -> Numbers: ...


@dataclass
class Run:
    """One run. `newllm.run.prepare` builds and checks all of it before anything is written.

    stages: group -> stage before training. earlier: what an earlier attempt
    has fixed. started: by time.monotonic. packed: makes the training steps if the run is part of a pack.
    """

    cfg: DictConfig
    directory: RunDirectory
    runtime: Runtime
    trainer: Trainer
    optim: AdamW
    device: torch.device
    precision: Precision
    data: Dataset
    model: LanguageModel
    stages: Any = None
    place: Place = field(default_factory=Place)
    earlier: NumericSettings | None = None
    started: float = field(default_factory=time.monotonic)
    loggers: Loggers = field(default_factory=lambda: Loggers({}, Path()))
    console: Console = field(default_factory=lambda: Console(bar=False))
    signals: Signals = field(default_factory=Signals)
    packed: StepMaker | None = None
