"""The training loop: steps, validation, checkpoints and resuming an interrupted run.

A resumed run equals an uninterrupted one bit for bit, because the order of the rows depends only on (seed, epoch), sums
are Python floats added in the order of the steps, and metrics.jsonl is truncated to the length recorded in the
checkpoint. At the end of an epoch the best weights are written first, then the epoch's line, then `last.safetensors`:
a run killed in between repeats the steps since the previous checkpoint and writes the same.
"""

import math
import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from newllm.config import signature
from newllm.data import Rows
from newllm.errors import RunError
from newllm.precision import autocast
from newllm.training import printing
from newllm.training.checkpoint import load_training, save_training, save_weights
from newllm.training.compilation import settle
from newllm.training.context import Run
from newllm.training.cross_entropy import IGNORED, token_losses
from newllm.training.distributed import Team
from newllm.training.memory import peak_bytes
from newllm.training.progress import Pending, Progress
from newllm.training.step import Piece, Step, cut

STATUS_SECONDS = 2.0  # between two updates of status.json


class Loop:
    """Trains a run's model. `train()` trains from the start or the last checkpoint to the end.

    team: the other processes that train this run. lines_before: bytes of metrics.jsonl written by an earlier stage.
    """

    def __init__(self, run: Run, team: Team | None = None, lines_before: int = 0) -> None:
        self.run, self.team, self.lines_before = run, team, lines_before
        self.trainer, self.model, self.data, self.device = run.trainer, run.model, run.data, run.device
        self.directory, self.console = run.directory, run.console
        self.step = Step(run.model, run.optim, run.device, run.precision, run.runtime.fused)
        self.about = {"data": run.data.fingerprint, "signature": signature(run.cfg), "precision": run.precision}
        self.seq_len = run.data.train.batch(np.arange(1))[0].shape[1]
        self.epoch_steps, self.steps = run.trainer.steps(len(run.data.train), self.seq_len)
        self.progress = Progress()
        self.earlier_seconds = 0.0  # training time of earlier attempts
        self._pending = Pending()
        self._began = self._saved = self._logged = self._epoch_began = time.monotonic()
        self._reported = -math.inf
        self._logged_at = 0
        self._speed: float | None = None  # tokens per second, when last logged

    def resume(self) -> bool:
        """Load the last checkpoint; returns whether there is one."""
        if not self.directory.last_checkpoint.exists():
            self.directory.truncate_metrics(self.lines_before)
            return False
        self.progress = load_training(self.directory.last_checkpoint, self.model, self.step.optimizer, self.about)
        self.directory.truncate_metrics(self.progress.metrics_bytes)
        self.earlier_seconds = self.progress.seconds
        return True

    def compile(self, wanted: bool | Literal["auto"]) -> bool:
        """Compile the model if `wanted` is true, or if it is "auto" and compiling pays; returns whether it did."""
        batch = self.trainer.order(self.data, 0)[: self.trainer.batch_size]
        piece = cut(self.data.train, batch, self.trainer.accumulate)[0]
        return settle(wanted, self.step, piece, self.steps - self.progress.step, self.run.runtime, self.console.line)

    def train(self) -> None:
        """Train to the end. A signal stops training between two steps, with a checkpoint: see Signals."""
        progress = self.progress
        if self.team is not None:
            self.team.join()
            self.step.distribute()
        self._began = self._saved = self._logged = self._epoch_began = time.monotonic()
        self._logged_at = progress.trained_tokens
        self.console.line()
        self.console.line(printing.EPOCH_HEADING, style="bold")
        for line in progress.history:
            self.console.line(printing.epoch_line(line, self.run.judge, seconds=None))
        with self.run.signals.deferred(), self.console.progress(self.steps, progress.step) as self._bar:
            while not progress.finished:
                self.model.train()
                for indices in self._batches():
                    self._stop_if_asked()
                    self._step(indices)
                self._validate()

    def _batches(self) -> Iterator[np.ndarray]:
        """The rows of each remaining step of the current epoch."""
        progress, size = self.progress, self.trainer.batch_size
        order = self.trainer.order(self.data, progress.epoch)
        done_before = progress.step - progress.epoch_step
        for step in range(progress.epoch_step, min(self.epoch_steps, self.steps - done_before)):
            yield order[step * size : (step + 1) * size]

    def _step(self, indices: np.ndarray) -> None:
        progress = self.progress
        pieces = cut(self.data.train, indices, self.trainer.accumulate)
        rate = self.run.optim.rate(progress.step, self.steps)
        if self.team is not None:
            self.team.train_on(indices, rate)
        if progress.peak_bytes is None:
            self._measured_step(pieces, rate)
        elif self.run.packed is not None:
            self._pending.append(self.run.packed(self.step, pieces, rate))
        else:
            self._pending.append(self.step(pieces, rate))

        progress.stepped(len(indices) * self.seq_len)
        if progress.step % self.trainer.log_every == 0 or progress.step == self.steps:
            self._log(rate)
        if self.run.runtime.checkpoint_due(progress.step, self._saved):
            self._save()

    def _measured_step(self, pieces: list[Piece], rate: float) -> None:
        """A step whose memory is measured; in a pack, too, this run makes it alone.

        The first step also allocates the optimizer's state, so the second one is measured if there is one.
        """
        if self.progress.step < min(1, self.steps - 1):
            self._pending.append(self.step(pieces, rate))
            return
        with self.step.batch_loss.plain():  # memory inside compiled code cannot be observed
            self.progress.peak_bytes = peak_bytes(
                lambda: self._pending.append(self.step(pieces, rate)), self.step.tensors(), self.device
            )

    def _drain(self) -> float:
        """Add the results of all pending steps to the sums; returns the last gradient norm."""
        norm = math.nan
        first = self.progress.step - len(self._pending) + 1
        for step, (loss, norm, scored) in enumerate(self._pending.fetch(), first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise RunError(
                    f"Training broke at step {step}: the loss is {loss:g} and the gradient's norm {norm:g}; a lower "
                    f"rate (lr={self.run.optim.lr / 10:g}) or optim.clip=1.0 usually helps, in a run of its own"
                )
            self.progress.add(loss, scored)
        return norm

    def _log(self, rate: float) -> None:
        progress = self.progress
        norm = self._drain()
        loss = progress.take_logged()
        now = time.monotonic()
        speed = (progress.trained_tokens - self._logged_at) / max(now - self._logged, 1e-9)
        self._logged, self._logged_at, self._speed = now, progress.trained_tokens, speed
        self._record(
            {
                "train/loss": loss,
                "train/lr": rate,
                "train/grad_norm": norm,
                "train/tokens": progress.trained_tokens,
            }
            | {"time/seconds": self._seconds(), "speed/train_tokens_per_second": speed}
        )
        self._bar(progress.step, loss, speed)
        if now - self._reported > STATUS_SECONDS:
            self._report()

    def _validate(self) -> None:
        """The end of an epoch: validation loss, best weights, the epoch's line, a checkpoint."""
        progress = self.progress
        self._drain()
        loss = self._validation_loss(self.data.val)
        if not math.isfinite(loss):
            raise RunError(f"The validation loss after step {progress.step} is {loss:g}; try a lower rate in a new run")
        train_loss = progress.epoch_mean()
        best = progress.judge(loss)
        if best:
            save_weights(self.directory.best_checkpoint, self.model, {**self.about, "epoch": progress.epoch})
        line = {"epoch": progress.epoch, "train/loss": train_loss, "train/ppl": perplexity(train_loss)}
        line |= {"val/loss": loss, "val/ppl": perplexity(loss), "val/best": best}
        progress.next_epoch(line)
        now = time.monotonic()
        self.console.line(printing.epoch_line(line, self.run.judge, seconds=now - self._epoch_began))
        self._epoch_began = now
        self._record({**line, "train/tokens": progress.trained_tokens, "time/seconds": self._seconds()})
        stopped = progress.lost_patience(self.trainer.patience)
        progress.finished = progress.step >= self.steps or stopped
        if stopped and progress.step < self.steps:
            self.console.line(f"Stopped early: {progress.bad_epochs} epoch(s) without a better val/loss.")
        self._save()

    @torch.no_grad()
    def _validation_loss(self, rows: Rows) -> float:
        """Mean nats per scored token, over all tokens with equal weight."""
        self.model.eval()
        total, count = 0.0, 0
        for start in range(0, len(rows), self.trainer.batch_size):
            self._stop_if_asked()
            inputs, labels = rows.batch(np.arange(start, min(start + self.trainer.batch_size, len(rows))))
            with autocast(self.device, self.run.precision):
                hidden = self.model.hidden(inputs.to(self.device))
                losses = token_losses(hidden.flatten(0, 1), self.model.head_weight, labels.flatten().to(self.device))
            total += losses.sum(dtype=torch.float64 if self.device.type != "mps" else None).item()
            count += int((labels != IGNORED).sum())
        return total / max(count, 1)

    def _stop_if_asked(self) -> None:
        if self.team is not None:
            self.team.check()
        if self.run.signals.received:
            self._save()
            self.run.signals.check()

    def _save(self) -> None:
        self._drain()
        progress = self.progress
        progress.seconds = self._seconds()
        self._began = time.monotonic()
        progress.metrics_bytes = self.directory.sync_metrics()
        save_training(self.directory.last_checkpoint, self.model, self.step.optimizer, progress, self.about)
        self._report()
        self._saved = time.monotonic()

    def _report(self) -> None:
        progress = self.progress
        self._reported = time.monotonic()
        tokens_left = (self.steps - progress.step) * self.trainer.batch_size * self.seq_len
        self.directory.update_status(
            progress={
                "step": progress.step,
                "steps": self.steps,
                "epoch": progress.epoch,
                "loss": progress.last_loss,
                "tokens_per_second": self._speed,
                "seconds_left": tokens_left / self._speed if self._speed else None,  # without the evaluation
            }
        )

    def _record(self, values: dict[str, float]) -> None:
        step = self.progress.step
        self.directory.append_metrics({"step": step, **values})
        self.run.logger.log(step, values)

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self._began


def perplexity(loss: float) -> float:
    """exp(loss), or infinity on overflow."""
    return math.exp(loss) if loss < 700 else math.inf
