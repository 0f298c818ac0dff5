"""A finished run evaluated once more: to see its numbers again, to add others, or to see it under other settings."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from newllm.config.stored import Evaluation, evaluation, request
from newllm.console import Console, number
from newllm.data.tokenizer import Tokenizer
from newllm.errors import ConfigError, RunError
from newllm.evaluation.subject import evaluate
from newllm.model import build_model
from newllm.run import stored_results as evaluated
from newllm.run.finished import environment, finished_run, stored
from newllm.run.prepare import counts, prepare, subject
from newllm.run.stored_results import Compared, Found
from newllm.store.environment import describe, settled
from newllm.store.run_directory import RunDirectory
from newllm.training.checkpoint import load_weights, weight_shapes
from newllm.training.context import Run
from newllm.training.signals import Signals


def evaluate_run(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    rerun: bool = False,
    apart: bool = False,
) -> dict[str, float]:
    """What `newllm evaluate PATH …` does for one run; returns the metrics of this evaluation.

    overrides: as on the command line, ``["eval=[extrapolation]", "pos_encoding.scaling=yarn"]``; none of them: the
    run's own evaluation is repeated. rerun: compute also what has been found before. apart: keep the results in a
    folder of their own also where only evaluators have other options.

    Raises ConfigError for what cannot be asked, RunError where a number that stands there comes out otherwise.
    """
    run = finished_run(path)
    return Again(run, evaluation(stored(run), request(overrides, config_dir, apart)), rerun).metrics()


@dataclass(frozen=True)
class Again:
    """One evaluation of one run."""

    run: RunDirectory
    asked: Evaluation
    rerun: bool = False
    signals: Signals | None = None

    def metrics(self) -> dict[str, float]:
        """Those of this evaluation: stored, if it has been made before, else computed, compared and added."""
        kept = self.asked.kept()
        directory = evaluated.target(self.run, self.asked.said, kept)
        evaluators = self.asked.config["eval"]
        console = Console(bar=False)
        if not self.rerun and not self.asked.repeats and (known := evaluated.earlier(directory, evaluators)):
            _show_stored(console, directory, known)
            return known
        started = evaluated.now()
        p = self._prepared()
        self._header(console, p)
        found = self._found(console, p, started)
        compared = evaluated.compare(directory, found)
        if not compared.different and (compared.new or not self.asked.repeats):
            try:
                with self._undisturbed():
                    compared = evaluated.add(self.run, directory, kept, found, console)
            except OSError as error:
                raise RunError(
                    f"{directory.path} can't be written ({error}); mend that and type the same command."
                ) from error
        self._say(console, directory, compared)
        return found.metrics

    def _undisturbed(self) -> AbstractContextManager[None]:
        return self.signals.deferred() if self.signals else nullcontext()

    def _prepared(self) -> Run:
        """Model with the run's weights, and data."""
        trained, cfg = OmegaConf.create(self.asked.trained), OmegaConf.create(self.asked.config)
        length = trained.data.seq_len
        tokenizer = Tokenizer.load(self.run.tokenizer)
        _refuse_other_weights(trained, cfg, tokenizer.vocab_size, length)
        other_data = any(key.startswith("data.") for key in self.asked.changes)
        if other_data and cfg.data.tokenizer == "auto":
            cfg.data.tokenizer = str(self.run.tokenizer)
        began = settled(self.run.environment_file)
        if began and cfg.runtime.threads == "auto":
            cfg.runtime.threads = began.threads
        if began and cfg.trainer.precision == "auto":
            cfg.trainer.precision = began.precision
        cfg.logger = {"_target_": "newllm.training.loggers.NoLogger"}
        cfg.run_dir = str(self.run.path)
        p = prepare(cfg, trained_length=length)
        last = cfg.trainer.eval_weights == "last"
        about = load_weights(self.run.last_checkpoint if last else self.run.best_checkpoint, p.model)
        if not other_data and about["data"] != p.data.fingerprint:
            raise ConfigError(
                f"the text of {self.run.path} is not what it was when the run was trained, so its numbers would not "
                "compare; put it back, or evaluate on another text with data.path=… or data=NAME"
            )
        limit = p.model.position.limit
        if limit is not None and cfg.data.seq_len > limit:
            raise ConfigError(
                f"data.seq_len={cfg.data.seq_len}: pos_encoding={cfg.choices.pos_encoding} has values for {limit} "
                f"positions; type data.seq_len={limit} or less."
            )
        return p

    def _found(self, console: Console, p: Run, started: str) -> Found:
        """The evaluators' numbers, and those of model and data where these are not the run's own."""
        metrics = counts(p) if self.asked.said else {}
        tables: dict[str, Any] = {}
        p.model.position.adapt(p.cfg.data.seq_len)
        for findings in evaluate(p.cfg.eval, subject(p)):
            console.section(findings.title, findings.body)
            metrics |= findings.metrics
            tables |= findings.tables
            p.model.position.adapt(p.cfg.data.seq_len)  # which an evaluator of other lengths has changed
        return Found(
            self.asked.config["eval"], metrics, tables, list(self.asked.config["overrides"]), started, _environment(p)
        )

    def _header(self, console: Console, p: Run) -> None:
        cfg, threads = p.cfg, p.runtime.threads
        console.title("newllm evaluate")
        console.settings(
            {
                "run directory": str(self.run.path),
                "weights": cfg.trainer.eval_weights,
                "evaluators": ", ".join(cfg.eval),
                "machine": f"{p.device}, {p.precision}, {threads} thread{'s' * (threads != 1)}",
            }
        )
        for line in self.asked.differences():
            console.line(f"Otherwise than in training: {line}.", style="yellow")
        for note in p.data.notes:
            console.line(f"Note: {note}", style="yellow")

    def _say(self, console: Console, directory: RunDirectory, compared: Compared) -> None:
        """How the results compare, and where they are. RunError if they do not."""
        count = len(compared.equal) + len(compared.different)
        if compared.different:
            rows = [{name: _exact(value) for name, value in line.items()} for line in compared.different]
            console.section("Not as it was", [rows, *_machine(self.run)])
            raise RunError(
                f"{len(rows)} of {count} results in {directory.path} came out otherwise, so nothing was written; "
                + ("" if self.asked.repeats else "evaluators with other options keep theirs apart with apart=true")
            )
        console.line()
        for line in compared.kept:
            console.line(
                f"{line['name']} stays {_exact(line['stored'])}, as training measured it; eval.loss gives "
                f"{_exact(line['now'])}."
            )
        if self.asked.repeats and count:
            console.line(f"Reproduced: {count} results, all equal.", style="bold")
        elif count:
            console.line(f"{count} results that stood there came out equal.")
        if new := [name for name in compared.new if not name.startswith(("params/", "data/"))]:
            console.line(f"{len(new)} new results are in {directory.path}.", style="bold")


def _refuse_other_weights(trained: DictConfig, cfg: DictConfig, tokens: int, seq_len: int) -> None:
    """ConfigError where the settings asked for need weights that the run has not, or leave some unused."""
    with torch.device("meta"):
        there, needed = (weight_shapes(build_model(one, tokens, seq_len)) for one in (trained, cfg))
    wrong = [name for name in sorted({*there, *needed}) if there.get(name) != needed.get(name)]
    if wrong:
        name = wrong[0]
        reason = "has no such weights" if name not in there else "has weights that they leave out"
        reason = "has them in another shape" if name in there and name in needed else reason
        raise ConfigError(
            f"these settings are of another model: {name} is {needed.get(name, 'absent')} in it, and the run {reason} "
            f"({there.get(name, 'absent')}); a finished run takes settings that leave its weights as they are, "
            "as pos_encoding.scaling=yarn does."
        )


def _environment(p: Run) -> dict[str, Any]:
    """What a line of evaluations.jsonl says of code and machine."""
    all_of_it = describe(device=str(p.device), threads=p.runtime.threads, precision=p.precision)
    kept = {name: all_of_it[name] for name in ("git", "device", "threads", "precision", "cpu", "host")}
    return {**kept, "torch": all_of_it["packages"].get("torch")}


def _machine(run: RunDirectory) -> list[str]:
    """What is otherwise than when the run was made, of all that may move numbers."""
    then = environment(run)
    here = describe(device=then.get("device", ""), threads=0, precision="")
    pairs: dict[str, tuple[Any, Any]] = {name: (then.get(name), here[name]) for name in ("cpu", "git", "platform")}
    pairs["torch"] = then.get("packages", {}).get("torch"), here["packages"].get("torch")
    return [f"{name} was {one}, is {other}" for name, (one, other) in pairs.items() if one != other]


def _show_stored(console: Console, directory: RunDirectory, known: Mapping[str, float]) -> None:
    rows = [{"metric": name, "value": number(value)} for name, value in known.items()]
    console.section(f"Evaluated before: {directory.path}", [rows])
    console.line("rerun=true computes these once more, and compares.")


def _exact(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
