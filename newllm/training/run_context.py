"""The context of one run: what its stages, training loop and evaluators work with."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from omegaconf import DictConfig

from newllm.console import Console
from newllm.data import Dataset
from newllm.model import LanguageModel
from newllm.precision import Precision
from newllm.runtime import Place, Runtime
from newllm.store.environment import NumericSettings
from newllm.store.run_directory import RunDirectory
from newllm.training.loggers import Logger
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
    logger: Logger | None = None
    console: Console = field(default_factory=lambda: Console(bar=False))
    signals: Signals = field(default_factory=Signals)
    packed: StepMaker | None = None

    def log(self, step: int, metrics: Mapping[str, float], *, close: bool = False) -> None:
        """Send metrics to the logger, and `close` it. A logger that fails is switched off, and the run goes on."""
        try:
            if self.logger is not None:
                self.logger.log(step, metrics)
                if close:
                    self.logger.close()
        except Exception as error:
            name, self.logger = type(self.logger).__name__, None
            self.console.line(f"The logger {name} failed ({error}) and is off for the rest of the run.")
