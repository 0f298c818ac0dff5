"""The first of V-DProj's two phases: trains the compression of values, then freezes it."""

import math
import time
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from newllm.attention.value_projection import CompressedValues, reconstruction_error
from newllm.checks import above, at_least
from newllm.config import signature
from newllm.data import Dataset
from newllm.data.facts import IGNORED
from newllm.errors import ConfigError, RunError
from newllm.evaluation.subject import observing
from newllm.model import LanguageModel
from newllm.precision import autocast
from newllm.run.stage import Stage, StageResult
from newllm.training.checkpoint import Progress, load_training, load_weights, save_training, save_weights
from newllm.training.optimizer import AdamW, lower_rate
from newllm.training.run_context import Run
from newllm.training.step import BatchLoss, Numbers, Step, cut, read_and_clear
from newllm.two_phase.first_phase import Line, finish_phase, update_progress, write_lines

_NAME = "reconstruction"
_HEADING = f"{'epoch':>5}{'train MSE':>14}{'val MSE':>14}   {'time':>8}"


class Reconstruction(Stage):
    """Trains ``v' = W_r (W_c v + b_c) + b_r`` to restore the values v in every layer of a randomly initialised model.

    Minimises the mean over layers of MSE(v', v) by AdamW (weight decay 0.01, clipping at 1) on these matrices and
    biases alone, over the training rows of the run, in the batches of its trainer, then freezes them. Each layer reads
    the states that follow from the restored values of the layers below, and the gradient flows through them.

    Source: rato-tokyo/new-llm, scripts/experiment_vdproj_2phase.py (December 2025), whose second phase trains all
    other weights on the token loss alone: attention.reconstruction_weight=0.

    lr: constant. epochs: maximum. patience: stop after this many epochs without a better validation MSE; None: never.
    keep: the matrices that the second phase gets: those of the best epoch or, as published, of the last one.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        epochs: int = 10,
        patience: int | None = 1,
        keep: Literal["best", "last"] = "best",
    ) -> None:
        above("phase1.lr", lr, 0, 1e-3)
        at_least("phase1.epochs", epochs, 1, 10)
        at_least("phase1.patience", 1 if patience is None else patience, 1, 1)
        self.lr, self.epochs, self.patience, self.keep = lr, epochs, patience, keep

    def check(self, cfg: DictConfig, model: LanguageModel, data: Dataset) -> None:
        if not _compressing_layers(model):
            chosen = (cfg.get("choices") or {}).get("attention", "another one")
            raise ConfigError(
                "phase1=reconstruction trains the compression of values, which this run's attention "
                f"({chosen}) does not have; type attention=vdproj, or phase1=none."
            )

    def run(self, run: Run) -> StageResult:
        pairs = nn.ModuleList(
            nn.ModuleList([layer.compress, layer.restore]) for layer in _compressing_layers(run.model)
        )
        trainable = [p for p in run.model.parameters() if p.requires_grad]
        run.model.requires_grad_(False)
        pairs.requires_grad_(True)
        try:
            training = _Training(self, run, pairs)
            training.train()
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
            pairs.requires_grad_(False)

        progress = training.progress
        epoch = progress.best_epoch if self.keep == "best" else progress.epoch
        assert epoch is not None
        kept = progress.history[epoch - 1]
        metrics = {
            "phase1/epochs": progress.epoch,
            "phase1/steps": progress.step,
            "phase1/loss": kept["phase1/loss"],
            "phase1/val_loss": kept["phase1/val_loss"],
            "speed/phase1_seconds": progress.seconds,
        }
        text = [
            f"Compression and restoration are frozen as of epoch {epoch} of {progress.epoch}: validation MSE of the "
            f"restored values {kept['phase1/val_loss']:.4g}."
        ]
        return finish_phase(run, metrics, progress.history, text)


class _Training:
    """Trains the epochs that are left.

    checkpoints/phase1.safetensors holds what a resumed run needs, phase1_best.safetensors the matrices of the best
    epoch.
    """

    def __init__(self, phase: Reconstruction, run: Run, pairs: nn.ModuleList) -> None:
        self.phase, self.run, self.pairs = phase, run, pairs
        optim = AdamW(phase.lr, betas=[0.9, 0.999], weight_decay=0.01, decay="all", clip=1.0, schedule="constant")
        self.step = Step(run.model, optim, run.device, run.precision, run.runtime.fused)
        self.step.loss = _Loss(run.model, run.device, run.precision)
        self.epoch_steps = math.ceil(len(run.data.train) / run.trainer.batch_size)
        self.steps = self.epoch_steps * phase.epochs
        self.about = {"data": run.data.fingerprint, "signature": signature(run.cfg), "precision": run.precision}
        checkpoints = run.directory.last_checkpoint.parent
        self.file, self.best = checkpoints / "phase1.safetensors", checkpoints / "phase1_best.safetensors"
        self.progress = Progress()
        self._pending: list[Numbers] = []
        if self.file.exists():
            self.progress = load_training(self.file, pairs, self.step.optimizer, self.about)
        self._began = self._saved = time.monotonic()

    def train(self) -> None:
        """Train what is left; the matrices to keep are in the model afterwards."""
        progress, run = self.progress, self.run
        size = f"{sum(p.numel() for p in self.pairs.parameters()):,} parameters"
        resumed = f"; goes on after step {progress.step:,}" if progress.step and not progress.finished else ""
        done = ", done before" if progress.finished else ""
        run.console.line()
        run.console.line(f"Phase 1: the compression of values ({size}) learns to restore them{resumed}{done}.")
        run.console.line(_HEADING, style="bold")
        write_lines(run.directory, progress.history)
        for line in progress.history:
            run.console.line(_epoch_line(line, seconds=None))
        run.model.eval()  # in training mode an attention would add its own loss
        with run.signals.deferred(), run.console.progress(self.steps, progress.step) as bar:
            while not progress.finished:
                self._epoch(bar)
        if self.phase.keep == "best":
            load_weights(self.best, self.pairs)

    def _epoch(self, bar: Any) -> None:
        """Run the steps left in the current epoch, validate, write its line and a checkpoint."""
        progress, run, rows = self.progress, self.run, self.run.data.train
        began, size, order = time.monotonic(), run.trainer.batch_size, run.trainer.order(run.data, progress.epoch)
        for step in range(progress.epoch_step, self.epoch_steps):
            self._stop_if_asked()
            indices = order[step * size : (step + 1) * size]
            self._pending.append(self.step(cut(rows, indices, run.trainer.accumulate), self.phase.lr))
            progress.count_step(len(indices) * rows.seq_len)
            if progress.step % run.trainer.log_every == 0:
                self._fetch_losses()
                bar(progress.step, progress.take_logged(), progress.trained_tokens / max(self._seconds(), 1e-9))
            if run.runtime.checkpoint_due(progress.step, self._saved):
                self._save()
        self._fetch_losses()
        error = self._finite(self._validation_error())
        if progress.add_validation(error):
            save_weights(self.best, self.pairs, {**self.about, "epoch": progress.epoch})
        values = {"phase1/loss": progress.epoch_mean(), "phase1/val_loss": error, "time/seconds": self._seconds()}
        line: Line = {"phase": _NAME, "epoch": progress.epoch, **values}
        progress.end_epoch(line)
        progress.finished = progress.out_of_patience(self.phase.patience) or progress.epoch == self.phase.epochs
        self._save()
        write_lines(run.directory, progress.history)
        run.console.line(_epoch_line(line, time.monotonic() - began))

    @torch.no_grad()
    def _validation_error(self) -> float:
        """Mean over layers and rows of MSE(v', v)."""
        run, rows, total = self.run, self.run.data.val, 0.0
        for start in range(0, len(rows), run.trainer.batch_size):
            self._stop_if_asked()
            inputs, _ = rows.batch(np.arange(start, min(start + run.trainer.batch_size, len(rows))))
            with autocast(run.device, run.precision):
                total += layer_errors(run.model, inputs.to(run.device)).mean(dim=0).sum().item()
        return total / len(rows)

    def _fetch_losses(self) -> None:
        """Add the losses of all steps since the last call; they stay on the device until then."""
        for loss, _, scored in read_and_clear(self._pending):
            self.progress.add(self._finite(loss), scored)

    def _finite(self, error: float) -> float:
        if not math.isfinite(error):
            raise RunError(
                f"Phase 1 diverged by step {self.progress.step}: the error of the restored values is {error:g}; a "
                f"lower rate (phase1.lr={lower_rate(self.phase.lr):g}) usually helps, in a new run."
            )
        return error

    def _stop_if_asked(self) -> None:
        if self.run.signals.received:
            self._save()
            self.run.signals.check()

    def _save(self) -> None:
        self._fetch_losses()
        progress = self.progress
        progress.seconds, self._began = self._seconds(), time.monotonic()
        save_training(self.file, self.pairs, self.step.optimizer, progress, self.about)
        update_progress(self.run, _NAME, progress.step, self.steps, progress.history)
        self._saved = time.monotonic()

    def _seconds(self) -> float:
        """Seconds of training in all attempts."""
        return self.progress.seconds + time.monotonic() - self._began


class _Loss(BatchLoss):
    """Mean over rows and layers of MSE(v', v), weighted by the piece's share of the scored tokens."""

    def forward(self, inputs: Tensor, labels: Tensor, total: float | Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            errors = layer_errors(self.model, inputs)
        return errors.mean() * ((labels != IGNORED).sum() / total)


def layer_errors(model: LanguageModel, inputs: Tensor) -> Tensor:
    """MSE(v', v) [layers, B] of the model's values for inputs [B, T]."""
    errors: list[Tensor] = []

    def add_error(layer: int, tensors: dict[str, Tensor]) -> None:
        errors.append(reconstruction_error(tensors["restored"], tensors["value"]))

    with observing(model, add_error):
        model.hidden(inputs)
    return torch.stack(errors)


def _compressing_layers(model: nn.Module) -> list[CompressedValues]:
    return [module for module in model.modules() if isinstance(module, CompressedValues)]


def _epoch_line(line: Line, seconds: float | None) -> str:
    clock = "" if seconds is None else f"{seconds:7.1f}s"
    return f"{line['epoch']:>5}{line['phase1/loss']:>14.6f}{line['phase1/val_loss']:>14.6f}   {clock}".rstrip()
