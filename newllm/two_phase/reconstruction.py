"""Trains the compression of values before everything else: the first of V-DProj's two phases."""

import math
import time
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from newllm.attention.value_projection import CompressedValues, reconstruction_error
from newllm.config import signature
from newllm.data import Dataset
from newllm.errors import ConfigError, RunError
from newllm.evaluation.observe import observing
from newllm.model import LanguageModel
from newllm.precision import Precision, autocast
from newllm.training.checkpoint import load_training, load_weights, save_training, save_weights
from newllm.training.context import Run
from newllm.training.cross_entropy import IGNORED
from newllm.training.optimizer import AdamW
from newllm.training.progress import Progress
from newllm.training.step import Step, cut
from newllm.two_phase.first_phase import FirstPhase, Outcome, write_lines

_HEADING = f"{'epoch':>5}{'train MSE':>14}{'val MSE':>14}   {'time':>8}"


class Reconstruction(FirstPhase):
    """Trains ``v' = W_r (W_c v + b_c) + b_r`` to restore the values v in every layer of a randomly initialised model.

    Minimises the mean over layers of MSE(v', v) by AdamW (weight decay 0.01, clipping at 1) on these matrices and
    biases alone, over the training rows of the run, in the batches of its trainer, then freezes them. Each layer reads
    the states that follow from the restored values of the layers below, and the gradient flows through them.

    Source: rato-tokyo/new-llm, scripts/experiment_vdproj_2phase.py (December 2025), whose second phase trains all
    other weights on the token loss alone: attention.reconstruction_weight=0.

    lr: constant. epochs: maximum. patience: stop after this many epochs without a better validation MSE; None: never.
    keep: the matrices that the second phase gets: those of the best epoch or, as published, of the last one.
    """

    name = "reconstruction"

    def __init__(
        self,
        lr: float = 1e-3,
        epochs: int = 10,
        patience: int | None = 1,
        keep: Literal["best", "last"] = "best",
    ) -> None:
        if lr <= 0:
            raise ConfigError(f"phase1.lr must be above 0; {lr:g} was given, try phase1.lr=1e-3.")
        for name, value in (("epochs", epochs), ("patience", patience)):
            if value is not None and value < 1:
                raise ConfigError(f"phase1.{name} must be at least 1; {value} was given, try phase1.{name}=1.")
        self.lr, self.epochs, self.patience, self.keep = lr, epochs, patience, keep

    def check(self, cfg: DictConfig, model: LanguageModel, data: Dataset) -> None:
        if not _compressing(model):
            given = (cfg.get("choices") or {}).get("attention", "another one")
            raise ConfigError(
                "phase1=reconstruction trains the compression of values, which this run's attention "
                f"({given}) does not have; type attention=vdproj, or phase1=none."
            )

    def train(self, run: Run) -> Outcome:
        pairs = nn.ModuleList(nn.ModuleList([layer.compress, layer.restore]) for layer in _compressing(run.model))
        pairs.requires_grad_(True)
        trained = set(pairs.parameters())
        others = [p for p in run.model.parameters() if p.requires_grad and p not in trained]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            outcome = _Training(self, run, pairs).train()
        finally:
            for parameter in others:
                parameter.requires_grad_(True)
        pairs.requires_grad_(False)
        return outcome


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
        self.about = {"data": run.data.fingerprint, "signature": signature(run.cfg), "precision": run.precision}
        checkpoints = run.directory.last_checkpoint.parent
        self.file, self.best = checkpoints / "phase1.safetensors", checkpoints / "phase1_best.safetensors"
        self.progress = Progress()
        if self.file.exists():
            self.progress = load_training(self.file, pairs, self.step.optimizer, self.about)
        self._began = self._saved = time.monotonic()

    def train(self) -> Outcome:
        """Train what is left; the matrices to keep are in the model afterwards."""
        progress, run, steps = self.progress, self.run, self.epoch_steps * self.phase.epochs
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
        with run.signals.deferred(), run.console.progress(steps, progress.step) as bar:
            while not progress.finished:
                self._epoch(bar)
        if self.phase.keep == "best":
            load_weights(self.best, self.pairs)
        epoch = progress.best_epoch if self.phase.keep == "best" else progress.epoch
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
        return Outcome(metrics, progress.history, text)

    def _epoch(self, bar: Any) -> None:
        """Run the steps left in the current epoch, validate, write its line and a checkpoint."""
        progress, run, rows = self.progress, self.run, self.run.data.train
        began, size, order = time.monotonic(), run.trainer.batch_size, run.trainer.order(run.data, progress.epoch)
        for step in range(progress.epoch_step, self.epoch_steps):
            self._stop_if_asked()
            indices = order[step * size : (step + 1) * size]
            loss, _, scored = self.step(cut(rows, indices, run.trainer.accumulate), self.phase.lr)
            progress.stepped(len(indices) * rows.seq_len)
            progress.add(self._finite(loss.item()), scored)
            bar(progress.step, progress.take_logged(), progress.trained_tokens / max(self._seconds(), 1e-9))
            if run.runtime.checkpoint_due(progress.step, self._saved):
                self._save()
        error = self._finite(self._validation_error())
        if progress.judge(error):
            save_weights(self.best, self.pairs, {**self.about, "epoch": progress.epoch})
        values = {"phase1/loss": progress.epoch_mean(), "phase1/val_loss": error, "time/seconds": self._seconds()}
        line: dict[str, Any] = {"phase": self.phase.name, "epoch": progress.epoch, **values}
        progress.next_epoch(line)
        progress.finished = progress.lost_patience(self.phase.patience) or progress.epoch == self.phase.epochs
        self._save()
        write_lines(run.directory, progress.history)
        run.logger.log(progress.step, values)
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

    def _stop_if_asked(self) -> None:
        if self.run.signals.received:
            self._save()
            self.run.signals.check()

    def _save(self) -> None:
        progress = self.progress
        progress.seconds, self._began = self._seconds(), time.monotonic()
        save_training(self.file, self.pairs, self.step.optimizer, progress, self.about)
        self.phase.report(self.run, progress.step, self.epoch_steps * self.phase.epochs, progress.history)
        self._saved = time.monotonic()

    def _seconds(self) -> float:
        """Seconds of training in all attempts."""
        return self.progress.seconds + time.monotonic() - self._began

    def _finite(self, value: float) -> float:
        if not math.isfinite(value):
            raise RunError(
                f"Phase 1 diverged by step {self.progress.step}: the error of the restored values is {value:g}; a "
                f"lower rate (phase1.lr={self.phase.lr / 10:g}) usually helps, in a new run"
            )
        return value


class _Loss(nn.Module):
    """Mean over rows and layers of MSE(v', v), weighted by the piece's share of the scored tokens."""

    def __init__(self, model: LanguageModel, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.model, self.device, self.precision = model, device, precision

    def forward(self, inputs: Tensor, labels: Tensor, total: float) -> Tensor:
        with autocast(self.device, self.precision):
            errors = layer_errors(self.model, inputs)
        return errors.mean() * ((labels != IGNORED).sum() / (total or 1))


def layer_errors(model: nn.Module, inputs: Tensor) -> Tensor:
    """MSE(v', v) [layers, B] of the model's values for inputs [B, T]."""
    errors: list[Tensor] = []

    def see(layer: int, tensors: dict[str, Tensor]) -> None:
        errors.append(reconstruction_error(tensors["restored"], tensors["value"]))

    transformer: Any = model
    with observing(transformer, see):
        transformer.hidden(inputs)
    return torch.stack(errors)


def _compressing(model: nn.Module) -> list[CompressedValues]:
    """The attention layers that compress values."""
    return [module for module in model.modules() if isinstance(module, CompressedValues)]


def _epoch_line(line: dict[str, Any], seconds: float | None) -> str:
    clock = "" if seconds is None else f"{seconds:7.1f}s"
    return f"{line['epoch']:>5}{line['phase1/loss']:>14.6f}{line['phase1/val_loss']:>14.6f}   {clock}".rstrip()
