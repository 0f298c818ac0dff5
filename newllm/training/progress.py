"""The progress of training, which a checkpoint stores in addition to tensors."""

from dataclasses import dataclass, field
from typing import Any

import torch

from newllm.training.step import Numbers


@dataclass
class Progress:
    """Together with a checkpoint's tensors, everything that a resumed run needs to produce the same numbers.

    Sums are Python floats added in the order of the steps, so the point of interruption does not matter.
    """

    step: int = 0  # optimizer steps done
    epoch: int = 0  # epochs done, validation included
    epoch_step: int = 0  # steps done in the current epoch
    epoch_loss: float = 0.0  # sum of nats over the epoch's scored tokens so far
    epoch_tokens: int = 0
    logged_loss: float = 0.0  # the same sum since the last line of metrics.jsonl
    logged_tokens: int = 0
    trained_tokens: int = 0  # tokens seen in total
    best_loss: float | None = None
    best_epoch: int | None = None
    bad_epochs: int = 0  # epochs since the best one
    last_loss: float | None = None  # training loss last written to metrics.jsonl
    finished: bool = False
    metrics_bytes: int = 0  # length of metrics.jsonl
    peak_bytes: int | None = None  # memory of a training step, measured once
    seconds: float = 0.0  # of training, over all attempts
    history: list[dict[str, Any]] = field(default_factory=list)  # the lines of the finished epochs

    def stepped(self, tokens: int) -> None:
        """Count an optimizer step on `tokens` tokens; its loss is added later, when it is known."""
        self.step += 1
        self.epoch_step += 1
        self.trained_tokens += tokens

    def add(self, loss: float, scored: int) -> None:
        """Add the mean loss over `scored` tokens of the next step in order."""
        self.epoch_loss += loss * scored
        self.epoch_tokens += scored
        self.logged_loss += loss * scored
        self.logged_tokens += scored

    def take_logged(self) -> float:
        """Mean loss since the last call."""
        self.last_loss = self.logged_loss / max(self.logged_tokens, 1)
        self.logged_loss, self.logged_tokens = 0.0, 0
        return self.last_loss

    def judge(self, val_loss: float) -> bool:
        """Count an epoch that ended with this validation loss; returns whether it is the best so far."""
        self.epoch += 1
        if self.best_loss is None or val_loss < self.best_loss:
            self.best_loss, self.best_epoch, self.bad_epochs = val_loss, self.epoch, 0
            return True
        self.bad_epochs += 1
        return False

    def lost_patience(self, patience: int | None) -> bool:
        """Whether `patience` epochs (None: no limit) have passed without a better one."""
        return patience is not None and self.bad_epochs >= patience

    def epoch_mean(self) -> float:
        """Mean loss of the current epoch so far."""
        return self.epoch_loss / max(self.epoch_tokens, 1)

    def next_epoch(self, line: dict[str, Any]) -> None:
        """Keep the `line` of the epoch that has ended and begin another."""
        self.history.append(line)
        self.epoch_step, self.epoch_loss, self.epoch_tokens = 0, 0.0, 0


class Pending:
    """Results of steps that stay on the device until they are needed."""

    def __init__(self) -> None:
        self._numbers: list[Numbers] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def append(self, numbers: Numbers) -> None:
        """Add the results of the next step."""
        self._numbers.append(numbers)

    def fetch(self) -> list[tuple[float, float, int]]:
        """Loss, gradient norm and scored tokens of each step since the last call, in order. Waits for the device."""
        if not self._numbers:
            return []
        losses = torch.stack([loss for loss, _, _ in self._numbers]).tolist()
        norms = torch.stack([norm for _, norm, _ in self._numbers]).tolist()
        scored = [count for _, _, count in self._numbers]
        self._numbers.clear()
        return list(zip(losses, norms, scored, strict=True))
