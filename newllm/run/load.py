"""load_run(): read a finished or running run, in a notebook or another command."""

import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf

from newllm.checks import sampling
from newllm.config.identity import stored_signature
from newllm.config.values import check_stored
from newllm.console import number
from newllm.data import Tokenizer
from newllm.errors import ConfigError
from newllm.model import LanguageModel, build_model
from newllm.store.own_code import use_code_of_run
from newllm.store.run_directory import TOKENIZER, RunDirectory
from newllm.store.run_names import located
from newllm.training.checkpoint import load_weights

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("val/bits_per_byte", "val/ppl")  # the repr has the first of these that the run has
_USUAL = (None, "none", "default")  # choices that say nothing about a run


@dataclass(repr=False, eq=False)
class Run:
    """A run and what its directory holds. Metrics, tables, tokenizer and model are read when they are used. It can be
    passed wherever the path of a run directory is expected.

    `results`: metric -> number, and scored/METRIC -> fingerprint of the tokens that the metric scored, as they were
    when the run was loaded; {} before it is done. For an evaluation under other settings, `config` and `results` are
    those of the evaluation, and the weights are the run's.
    """

    files: RunDirectory
    config: DictConfig
    results: dict[str, Any]
    status: dict[str, Any]
    weights: Literal["best", "last"]

    @property
    def checkpoint(self) -> Path:
        """The file of the weights."""
        trained = self.files.trained
        return trained.best_checkpoint if self.weights == "best" else trained.last_checkpoint

    def __fspath__(self) -> str:
        return str(self.directory)

    def __repr__(self) -> str:
        shown = next((f", {name} {number(self.results[name])}" for name in SHOWN if name in self.results), "")
        return f"Run {self.directory.name} ({self.state}{shown})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the choices beside the main results."""
        choices = {name: choice for name, choice in self.config.choices.items() if choice not in _USUAL}
        results = {name: number(self.results[name]) for name in (*SHOWN, "params/total") if name in self.results}
        about = {"state": self.state, "seed": self.config.get("seed"), **results, **choices}
        cells = [[name, "+".join(map(str, text)) if OmegaConf.is_list(text) else text] for name, text in about.items()]
        rows = "".join(f"<tr><th>{escape(str(name))}</th><td>{escape(str(text))}</td></tr>" for name, text in cells)
        return f"<table><caption>{escape(self.directory.name)}</caption>{rows}</table>"

    @property
    def directory(self) -> Path:
        return self.files.path

    @property
    def state(self) -> str:
        """The state when the run was loaded: done, running, queued, interrupted or failed."""
        return self.files.observed(self.status)

    @property
    def metrics(self) -> "pd.DataFrame":
        """The lines of metrics.jsonl: one per logged step and one per epoch, with NaN for what a line does not have."""
        import pandas as pd

        return pd.DataFrame(self.files.metrics())

    @property
    def tables(self) -> "dict[str, pd.DataFrame]":
        """The tables that evaluators have written (tables/NAME.csv), by their names. Raises ConfigError for a damaged
        one."""
        import pandas as pd

        names = sorted(file.stem for file in self.files.tables.glob("*.csv"))
        texts = {name: self.files.written(f"tables/{name}.csv") for name in names}
        return {name: pd.read_csv(io.BytesIO(text)) for name, text in texts.items() if text}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        trained = self.files.trained
        trained.written(TOKENIZER)
        return Tokenizer.load(trained.tokenizer)

    @cached_property
    def model(self) -> LanguageModel:
        """The trained model on the CPU, in evaluation mode. Reads safetensors only."""
        trained = self.files.trained
        use_code_of_run(trained)
        length = check_stored(trained.config()).data.seq_len
        model = build_model(check_stored(self.files.config()), self.tokenizer.vocab_size, length)
        about = load_weights(self.checkpoint, model)
        trained.require_same_run(self.checkpoint, about["signature"], stored_signature(trained.config()))
        return model.eval()

    def generate(
        self, prompt: str, max_new_tokens: int = 100, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> str:
        """The prompt and its continuation, as `newllm generate` prints it.

        ::

            print(run.generate("def main", temperature=0.8, top_p=0.9))

        Args:
            prompt: the text to continue.
            max_new_tokens: fewer if the model ends the text, or the encoding has no values for more positions.
            temperature: 0 is greedy.
            top_p: nucleus of this probability in (0, 1].
            seed: of the sampling.

        Raises ConfigError for a value out of range, and for a run without weights.
        """
        sampling(max_new_tokens, temperature, top_p, seed)
        return prompt + "".join(self.continuation(prompt, max_new_tokens, temperature, top_p, seed))

    def continuation(
        self, prompt: str, max_new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[str]:
        """The pieces of text that follow the prompt, each as soon as it is decoded. See `generate`."""
        if not self.checkpoint.exists() and self.status.get("state") != "done":
            raise ConfigError(
                f"{self.directory} has no weights yet, since its first epoch has not ended; the command that "
                "started it resumes it."
            )
        from newllm.model.decoder import generate
        from newllm.precision import resolve

        model, tokenizer = self.model, self.tokenizer
        precision = resolve(self.config.trainer.precision, model.embed.weight.device)
        given = tokenizer.encode(prompt)
        if not given:
            if tokenizer.eot_id is None:
                raise ConfigError(
                    "the prompt is empty and the tokenizer has no end-of-text to begin after; give some text."
                )
            given = [tokenizer.eot_id]
        count = max_new_tokens
        if model.position.limit is not None and len(given) + count > model.position.limit:
            count = model.position.limit - len(given)
            why = f"the encoding has values for {model.position.limit} positions"
            print(f"newllm: {why}, so {max(0, count)} tokens are generated", file=sys.stderr)
        written, ids = "", []
        for token in generate(model, given, count, temperature, top_p, seed, tokenizer.eot_id, precision):
            ids.append(token)
            text = tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # the bytes of a character may come as several tokens
                yield text[len(written) :]
                written = text
        yield tokenizer.decode(ids)[len(written) :]  # the bytes of an incomplete character


def load_run(path: str | os.PathLike[str], weights: Literal["best", "last"] | None = None) -> Run:
    """Load the run in the directory `path`, or one of its evaluations, with the best or the last weights.

    ::

        run = newllm.load_run("outputs/runs/nano-rope-…")
        run.results["val/bits_per_byte"], run.config.pos_encoding

    weights: None takes those that the results are of (trainer.eval_weights).
    `path` may also be ``FOLDER:NUMBER``, as numbered by ``newllm status FOLDER``.

    Raises ConfigError if there is no run.
    """
    directory = RunDirectory(located(path))
    config = directory.existing_config()
    if weights is None:
        weights = "last" if (config.get("trainer") or {}).get("eval_weights") == "last" else "best"
    status = directory.status()
    if directory.trained is directory:
        directory.require_same_run(directory.status_file, status.get("signature"), stored_signature(config))
    return Run(directory, OmegaConf.create(config), directory.results(status), status, weights)
