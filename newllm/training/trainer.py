"""The options of training and the number of steps that follows from them."""

import math
from typing import Literal

import numpy as np

from newllm.data import Dataset
from newllm.errors import ConfigError


class Trainer:
    """Length of training, batches, devices and precision.

    Args:
        seed: seed of the order of the rows.
        epochs: passes over the training rows; None if `tokens` is given.
        batch_size: rows in one optimizer step.
        shuffle: draw a new permutation of the rows for each epoch; False: rows follow one another as in the text, so
            that a batch is one piece of text.
        tokens: training tokens instead of epochs; the last epoch may then be incomplete.
        accumulate: number of pieces that a batch is cut into, to save memory. The step is the same up to rounding.
        recompute: keep only each layer's input for the backward pass, which computes the rest again: a third more time,
            far less memory, the same numbers. So it is not part of a run's signature. Without torch.compile and CUDA
            graphs.
        devices: processes that train the run together, each with a GPU or a share of the CPU's threads. The rows of
            a batch are divided among them; the step is the same up to rounding. They are started on this machine
            unless torchrun or srun has started them already.
        precision: of matrix products: "auto" is bf16 autocast if the processor supports it natively, else fp32. "fp16":
            autocast with a scaled loss, for GPUs without bf16. "tf32": fp32 with TF32 products, on GPUs since Ampere.
        validation: the validation loss that picks the best epoch and that `patience` looks at. "token": the mean over
            all scored tokens. "batch_mean": the mean of the means of batches of `batch_size` rows, as published.
        patience: stop after this many epochs without a better validation loss; None: never.
        eval_weights: the weights evaluated after training: those of the epoch with the best validation loss, or the
            last ones.
        log_every: steps between two lines of metrics.jsonl.
    """

    def __init__(
        self,
        seed: int,
        epochs: int | None,
        batch_size: int,
        shuffle: bool = True,
        tokens: int | None = None,
        accumulate: int = 1,
        recompute: bool = False,
        devices: int = 1,
        precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto",
        validation: Literal["token", "batch_mean"] = "token",
        patience: int | None = None,
        eval_weights: Literal["best", "last"] = "best",
        log_every: int = 20,
    ) -> None:
        if (epochs is None) == (tokens is None):
            raise ConfigError(
                f"training takes either epochs or a budget of tokens; epochs={epochs} and trainer.tokens={tokens} were "
                "given, try epochs=2, or trainer.tokens=5e6 epochs=null"
            )
        for name, value in {
            "epochs": epochs, "batch_size": batch_size, "trainer.tokens": tokens, "trainer.accumulate": accumulate,
            "trainer.devices": devices, "trainer.patience": patience, "trainer.log_every": log_every,
        }.items():  # fmt: skip
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1; {value} was given, try {name}=1")
        if accumulate * devices > batch_size:
            fewer = f"accumulate={batch_size // devices}" if devices <= batch_size else f"devices={batch_size}"
            raise ConfigError(
                f"trainer.accumulate={accumulate} on trainer.devices={devices} would cut batches of {batch_size} rows "
                f"into more pieces than rows; try trainer.{fewer}, or a larger batch_size"
            )
        self.seed, self.epochs, self.tokens, self.batch_size = seed, epochs, tokens, batch_size
        self.shuffle, self.accumulate, self.devices, self.precision = shuffle, accumulate, devices, precision
        self.recompute = recompute
        self.validation, self.patience, self.eval_weights = validation, patience, eval_weights
        self.log_every = log_every

    def order(self, data: Dataset, epoch: int) -> np.ndarray:
        """The training rows [N] of an epoch, in the order of its batches."""
        return data.order(self.seed, epoch) if self.shuffle else np.arange(len(data.train))

    def steps(self, rows: int, seq_len: int) -> tuple[int, int]:
        """Steps in an epoch of `rows` training rows (the last batch may be smaller), and steps in total."""
        epoch = math.ceil(rows / self.batch_size)
        if self.tokens is None:
            assert self.epochs is not None
            return epoch, epoch * self.epochs
        whole, rest = divmod(self.tokens, rows * seq_len)
        return epoch, whole * epoch + math.ceil(rest / (self.batch_size * seq_len))
