"""load_run(): read a finished or running run, in a notebook or another command."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from newllm.config.identity import stored_signature
from newllm.config.values import check_stored
from newllm.data import Tokenizer
from newllm.model import LanguageModel, build_model
from newllm.store.own_code import use_code_of_run
from newllm.store.run_directory import TOKENIZER, RunDirectory
from newllm.store.run_names import located
from newllm.training.checkpoint import load_weights


@dataclass
class LoadedRun:
    """The contents of a run directory; model and tokenizer are read on first use.

    `results`: metric -> number, and scored/METRIC -> fingerprint of the tokens that the metric scored. For an
    evaluation under other settings, `config` and `results` are those of the evaluation, the weights the run's.
    """

    directory: RunDirectory
    config: DictConfig
    results: dict[str, Any]
    status: dict[str, Any]
    weights: Literal["best", "last"]

    @property
    def checkpoint(self) -> Path:
        """The file of the weights."""
        trained = self.directory.trained
        return trained.best_checkpoint if self.weights == "best" else trained.last_checkpoint

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return self.directory.metrics()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        trained = self.directory.trained
        trained.written(TOKENIZER)
        return Tokenizer.load(trained.tokenizer)

    @cached_property
    def model(self) -> LanguageModel:
        """The trained model on the CPU, in evaluation mode. Reads safetensors only."""
        trained = self.directory.trained
        length = check_stored(trained.config()).data.seq_len
        model = build_model(check_stored(self.directory.config()), self.tokenizer.vocab_size, length)
        about = load_weights(self.checkpoint, model)
        trained.require_same_run(self.checkpoint, about["signature"], stored_signature(trained.config()))
        return model.eval()


def load_run(path: str | os.PathLike[str], weights: Literal["best", "last"] | None = None) -> LoadedRun:
    """Load the run in the directory `path`, or one of its evaluations, with the best or the last weights.

    weights: None takes those that the results are of (trainer.eval_weights).
    `path` may also be ``FOLDER:NUMBER``, as numbered by ``newllm status FOLDER``.

    Raises ConfigError if there is no run.
    """
    directory = RunDirectory(located(path))
    config = directory.existing_config()
    if weights is None:
        weights = "last" if (config.get("trainer") or {}).get("eval_weights") == "last" else "best"
    use_code_of_run(directory.trained)
    status = directory.status()
    if directory.trained is directory:
        directory.require_same_run(directory.status_file, status.get("signature"), stored_signature(config))
    return LoadedRun(directory, OmegaConf.create(config), directory.results(status), status, weights)
