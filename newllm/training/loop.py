"""The training loop: steps, validation, checkpoints and resuming an interrupted run.

A resumed run equals an uninterrupted one bit for bit, because the order of the rows depends only on (seed, epoch), sums
are Python floats added in the order of the steps, and metrics.jsonl is truncated to the length recorded in the
checkpoint. At the end of an epoch the best weights are written first, then the epoch's line, then `last.safetensors`:
a run killed in between repeats the steps since the previous checkpoint and writes the same.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from newllm.config import signature
from newllm.data import Dataset
from newllm.data.facts import IGNORED
from newllm.errors import RunError
from newllm.precision import autocast
from newllm.training.checkpoint import Progress, load_training, load_weights, save_training, save_weights
from newllm.training.cross_entropy import token_losses
from newllm.training.distributed import Team
from newllm.training.memory import peak_bytes
from newllm.training.optimizer import lower_rate
from newllm.training.run_context import Run
from newllm.training.step import Numbers, Step, cut, read_and_clear
from newllm.training.trunk import Trunk, find, keep_best, shares_trunks

MOST_SKIPPED = 40  # fp16 steps in a row: halved so often, any scale is far below 1
STATUS_SECONDS = 2.0  # between two updates of status.json
EPOCH_HEADING = f"{'epoch':>5}{'train ppl':>12}{'val loss':>10}{'val ppl':>12}   {'bits/byte':>10} {'time':>8}"


class Loop:
    """Trains a run's model: `resume()` loads the last checkpoint, `train()` goes on to the end.

    team: the other processes that train this run. data: what stages have left to train on; None: the run's own.
    stage_bytes: bytes of metrics.jsonl written by these stages.
    """

    def __init__(self, run: Run, team: Team | None = None, data: Dataset | None = None, stage_bytes: int = 0) -> None:
        self.run, self.team, self.stage_bytes = run, team, stage_bytes
        self.data = data or run.data
        self.model = run.model.model_for_rows(self.data)
        self.step = Step(self.model, run.optim, run.device, run.precision, run.runtime.fused)
        self.header = {"data": self.data.fingerprint, "signature": signature(run.cfg), "precision": run.precision}
        self.epoch_steps, self.steps = run.trainer.steps(len(self.data.train), self.data.train.seq_len)
        self._stable = run.optim.stable_steps(self.steps) if shares_trunks(run) else None
        self.progress = Progress()
        self._pending: list[Numbers] = []  # results that stay on the device until they are needed
        self._began = self._saved = self._logged = self._epoch_began = time.monotonic()
        self._reported = -math.inf
        self._logged_tokens = 0
        self._speed: float | None = None  # tokens per second, when last logged

    def resume(self) -> bool:
        """Load the last checkpoint; returns whether there is one."""
        directory = self.run.directory
        if not directory.last_checkpoint.exists():
            directory.truncate_metrics(self.stage_bytes)
            return False
        self.progress = load_training(directory.last_checkpoint, self.model, self.step.optimizer, self.header)
        directory.truncate_metrics(self.progress.metrics_bytes, self.progress.metrics_sha256)
        return True

    def branch(self) -> Trunk | None:
        """Begin with the trunk of a run of another budget; returns that trunk, None if there is none."""
        if not self._stable or (trunk := find(self.run, self._stable_header(), self._stable)) is None:
            return None
        directory, kept = self.run.directory, trunk.directory
        if (epoch := trunk.header["progress"]["best_epoch"]) is not None:
            load_weights(kept.stable_best_checkpoint, self.model)
            save_weights(directory.best_checkpoint, self.model, {**self.header, "epoch": epoch})
        header = {**self._stable_header(), "signature": trunk.header["signature"]}
        self.progress = load_training(kept.stable_checkpoint, self.model, self.step.optimizer, header)
        directory.metrics_file.write_bytes(trunk.metrics)
        self._began = time.monotonic()
        self._save()
        return trunk

    def _stable_header(self) -> dict[str, Any]:
        """Of the checkpoint with which the cool-down begins: the warm-up may follow from the length of the run."""
        return {**self.header, "warmup": self.run.optim.warmup_steps(self.steps)}

    def train(self) -> None:
        """Train to the end. A signal stops training between two steps, with a checkpoint: see Signals."""
        run, progress, size = self.run, self.progress, self.run.trainer.batch_size
        self.step.restore_scale(progress.scaler)
        if self.team is not None:
            self.team.join()
            self.step.distribute()
        self._began = self._saved = self._logged = self._epoch_began = time.monotonic()
        self._logged_tokens = progress.trained_tokens
        run.console.line()
        run.console.line(EPOCH_HEADING, style="bold")
        for line in progress.history:
            run.console.line(self._epoch_line(line))
        with run.signals.deferred(), run.console.progress(self.steps, progress.step) as self._bar:
            while not progress.finished:
                self.model.train()
                order = run.trainer.order(self.data, progress.epoch)
                steps_before = progress.step - progress.epoch_step
                for step in range(progress.epoch_step, min(self.epoch_steps, self.steps - steps_before)):
                    self._stop_if_asked()
                    self._step(order[step * size : (step + 1) * size])
                self._validate()

    def _step(self, indices: np.ndarray) -> None:
        run, progress = self.run, self.progress
        pieces = cut(self.data.train, indices, run.trainer.accumulate)
        rate = run.optim.rate(progress.step, self.steps)
        if self.team is not None:
            self.team.train_on(indices, rate)
        if run.packed is not None and progress.peak_bytes is not None:
            self._pending.append(run.packed(self.step, pieces, rate))
        elif progress.peak_bytes is not None or progress.step < min(1, self.steps - 1):
            self._pending.append(self.step(pieces, rate))
        else:  # measure memory: in the second step if there is one, since the first allocates the optimizer's state
            with self.step.plain():  # memory inside compiled code and graphs cannot be observed
                progress.peak_bytes = peak_bytes(
                    lambda: self._pending.append(self.step(pieces, rate)), self.step.tensors(), run.device
                )

        progress.count_step(len(indices) * self.data.train.seq_len)
        if progress.step % run.trainer.log_every == 0 or progress.step == self.steps:
            self._log(rate)
        if progress.step == self._stable:
            self._save()
            keep_best(run.directory)
            file, header = run.directory.stable_checkpoint, self._stable_header()
            save_training(file, self.model, self.step.optimizer, progress, header)
        elif run.runtime.checkpoint_due(progress.step, self._saved):
            self._save()

    def _drain(self) -> float:
        """Add the results of all pending steps to the sums; returns the last gradient norm."""
        norm = math.nan
        progress = self.progress
        first = progress.step - len(self._pending) + 1
        for step, (loss, norm, scored) in enumerate(read_and_clear(self._pending), first):
            skipped = self.step.scaler is not None and not math.isfinite(norm)
            progress.skipped_steps += skipped
            progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
            finite = math.isfinite(loss) and (math.isfinite(norm) or skipped)
            if not finite or progress.skipped_in_a_row > MOST_SKIPPED:
                raise RunError(
                    f"Training diverged at step {step}: the loss is {loss:g} and the gradient norm {norm:g}; a lower "
                    f"rate (lr={lower_rate(self.run.optim.lr):g}) or optim.clip=1.0 usually helps, in a new run"
                )
            progress.add(loss, scored)
        return norm

    def _log(self, rate: float) -> None:
        progress = self.progress
        norm = self._drain()
        loss = progress.take_logged()
        now = time.monotonic()
        self._speed = (progress.trained_tokens - self._logged_tokens) / max(now - self._logged, 1e-9)
        self._logged, self._logged_tokens = now, progress.trained_tokens
        skipped = {} if self.step.scaler is None else {"train/skipped_steps": progress.skipped_steps}
        self._record({
            "train/loss": loss, "train/lr": rate, "train/grad_norm": norm, "train/tokens": progress.trained_tokens,
            "time/seconds": self._seconds(), "speed/train_tokens_per_second": self._speed, **skipped,
        })  # fmt: skip
        self._bar(progress.step, loss, self._speed)
        if now - self._reported > STATUS_SECONDS:
            self._report()

    def _validate(self) -> None:
        """The end of an epoch: validation loss, best weights, the epoch's line, a checkpoint."""
        run, progress = self.run, self.progress
        self._drain()
        loss = self._validation_loss()
        if not math.isfinite(loss):
            raise RunError(f"The validation loss after step {progress.step} is {loss:g}; try a lower rate in a new run")
        train_loss = progress.epoch_mean()
        best = progress.add_validation(loss)
        if best:
            save_weights(run.directory.best_checkpoint, self.model, {**self.header, "epoch": progress.epoch})
        line = {"epoch": progress.epoch, "train/loss": train_loss, "train/ppl": perplexity(train_loss)}
        line |= {"val/loss": loss, "val/ppl": perplexity(loss), "val/best": best}
        progress.end_epoch(line)
        now = time.monotonic()
        run.console.line(self._epoch_line(line, f"{now - self._epoch_began:7.1f}s"))
        self._epoch_began = now
        self._record({**line, "train/tokens": progress.trained_tokens, "time/seconds": self._seconds()})
        stopped = progress.out_of_patience(run.trainer.patience)
        progress.finished = progress.step >= self.steps or stopped
        if stopped and progress.step < self.steps:
            run.console.line(f"Stopped early: {progress.bad_epochs} epoch(s) without a better val/loss.")
        self._save()

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean nats per scored token, over all validation tokens or, with ``validation="batch_mean"``, of the means of
        batches."""
        run, rows = self.run, self.data.val
        self.model.eval()
        sums, counts = [], []  # of each batch
        for start in range(0, len(rows), run.trainer.batch_size):
            self._stop_if_asked()
            inputs, labels = rows.batch(np.arange(start, min(start + run.trainer.batch_size, len(rows))))
            with autocast(run.device, run.precision):
                hidden = self.model.hidden(self.step.to_device(inputs))
                labels_there = self.step.to_device(labels.flatten())
                losses = token_losses(hidden.flatten(0, 1), self.model.head_weight, labels_there)
            sums.append(losses.sum(dtype=torch.float64 if run.device.type != "mps" else None))
            counts.append(int((labels != IGNORED).sum()))
        totals = [total.item() for total in sums]  # the first waits for the device, when all batches are under way
        if run.trainer.validation == "batch_mean":
            means = [total / count for total, count in zip(totals, counts, strict=True) if count]
            return sum(means) / max(len(means), 1)
        return sum(totals) / max(sum(counts), 1)

    def _stop_if_asked(self) -> None:
        if self.team is not None:
            self.team.check()
        if self.run.signals.received:
            self._save()
            self.run.signals.check()

    def _save(self) -> None:
        self._drain()
        progress, directory = self.progress, self.run.directory
        progress.seconds = self._seconds()
        progress.scaler = self.step.scaler.state_dict() if self.step.scaler is not None else None
        self._began = time.monotonic()
        progress.metrics_bytes = directory.sync_metrics()
        progress.metrics_sha256 = directory.metrics_sha256(progress.metrics_bytes)
        save_training(directory.last_checkpoint, self.model, self.step.optimizer, progress, self.header)
        self._report()
        self._saved = time.monotonic()

    def _report(self) -> None:
        """Write how far training has got to status.json."""
        progress, speed = self.progress, self._speed
        tokens_left = (self.steps - progress.step) * self.run.trainer.batch_size * self.data.train.seq_len
        done = {"step": progress.step, "steps": self.steps, "epoch": progress.epoch, "loss": progress.last_loss}
        pace = {"tokens_per_second": speed, "seconds_left": tokens_left / speed if speed else None}
        self.run.directory.update_status(progress={**done, **pace})
        self._reported = time.monotonic()

    def _record(self, values: dict[str, float]) -> None:
        line = {"step": self.progress.step, **values}
        self.run.directory.append_metrics(line)
        self.run.loggers.log(line)

    def _epoch_line(self, values: Mapping[str, Any], duration: str = "") -> str:
        """One line of the epoch table; `*` marks the best epoch so far."""
        bits = values["val/loss"] / math.log(2) / self.run.data.counts["data/bytes_per_token"]
        return (
            f"{values['epoch']:>5}{values['train/ppl']:>12,.1f}{values['val/loss']:>10.4f}{values['val/ppl']:>12,.1f} "
            f"{'*' if values['val/best'] else ' '} {bits:>10.4f} {duration:>8}"
        )

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self._began


def perplexity(loss: float) -> float:
    """exp(loss), or infinity on overflow."""
    return math.exp(loss) if loss < 700 else math.inf
