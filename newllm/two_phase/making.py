"""The stages of a first phase by fixed-point iteration: iterate, store the contexts, say how it went. Each is skipped
when it is done."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from newllm.effective_rank import effective_rank
from newllm.store.atomic import write_json
from newllm.training.signals import Signals
from newllm.two_phase import show, state
from newllm.two_phase.base import Outcome, Work
from newllm.two_phase.contexts import Contexts, Shape, Side, open_contexts, write_contexts
from newllm.two_phase.iterate import Iteration, forget
from newllm.two_phase.lines import Lines
from newllm.two_phase.passes import Piece, Text, parallel_contexts, true_contexts
from newllm.two_phase.recurrence import Recurrence
from newllm.two_phase.state import State

if TYPE_CHECKING:
    from newllm.two_phase.fixed_point import FixedPoint

SIDES: tuple[Side, Side] = ("train", "val")


def reads_contexts(model: nn.Module) -> bool:
    """Does the model have a second phase that reads stored contexts, rather than run its recurrence itself?"""
    return hasattr(model, "read")


@dataclass
class Making:
    """One run's work on the folder of a first phase, whose lock it holds.

    texts: the training text, and the validation text where contexts of it are stored.
    """

    phase: "FixedPoint"
    work: Work
    texts: Mapping[Side, Text]
    folder: Path

    def __post_init__(self) -> None:
        assert isinstance(self.work.model.recurrence, Recurrence)
        self.recurrence = self.work.model.recurrence
        self.lines = Lines(self.work.directory)
        self.state_file = self.folder / "state.safetensors"
        self.outcome_file = self.folder / "outcome.json"

    def outcome(self) -> Outcome:
        """What the phase has come to, the weights in the model; done now if it was not."""
        self.work.console.line()
        if self._is_done():
            self.work.console.line(show.taken(self.folder))
            self.work.console.line(show.HEADING, style="bold")
            self._show(done := state.load(self.state_file, self.recurrence))
        else:
            with self.work.signals.deferred():
                done = self._make()
        self.lines.end()
        self.recurrence.requires_grad_(False)
        metrics = json.loads(self.outcome_file.read_text(encoding="utf-8"))
        body = show.summary(self.phase, metrics, len(self.texts["train"]), self.recurrence.width, self.folder)
        return Outcome(metrics, {"phase1": show.table(done.lines)}, body, self._contexts())

    def _is_done(self) -> bool:
        if not self.outcome_file.exists():
            return False
        if self.state_file.exists() and (self._contexts() is not None or not reads_contexts(self.work.model)):
            return True
        # Somebody has removed a part, and the contexts that it was made of are no more: afresh.
        for path in (self.outcome_file, self.state_file):
            path.unlink(missing_ok=True)
        return False

    def _make(self) -> State:
        objective = self.phase.objective
        assert objective is not None
        text, precision = self.texts["train"], self.work.precision
        iteration = Iteration(self.phase.rule, objective, self.recurrence, text, precision, self.phase.seed)
        done = self._iterate(iteration)
        self.recurrence.requires_grad_(False)
        began = time.monotonic()
        previous = iteration.contexts(self.folder, done.iteration)
        if reads_contexts(self.work.model):
            for side in SIDES:
                self._store(side, previous)
        metrics = self._metrics(done, previous)
        metrics["speed/phase1_seconds"] = done.seconds + time.monotonic() - began
        write_json(self.outcome_file, metrics)
        forget(self.folder)
        return done

    def _iterate(self, iteration: Iteration) -> State:
        work, began = self.work, time.monotonic()
        done = State()
        if self.state_file.exists():
            done = state.load(self.state_file, self.recurrence, iteration.optimizer)
            began -= done.seconds
        work.console.line(show.beginning(self.phase, len(iteration.text), done.iteration))
        work.console.line(show.HEADING, style="bold")
        if not done.iteration:
            iteration.begin(self.folder)
            done.iteration, done.seconds = 1, time.monotonic() - began
            state.save(self.state_file, done, self.recurrence, iteration.optimizer)
        self._show(done)
        while not self._ended(done):
            self._report(done)
            number = done.iteration + 1
            with work.console.progress(len(iteration.pieces), 0) as bar:
                between = partial(_tell, work.signals, bar, self.phase.rule.batch_tokens, time.monotonic())
                found = iteration.once(self.folder, number, between)
            done.iteration, done.steps, done.seconds = number, done.steps + found.steps, time.monotonic() - began
            numbers = {"phase1/loss": found.loss, "phase1/converged": found.converged}
            numbers |= {} if found.bound is None else {"phase1/bound": found.bound}
            done.lines.append({"phase": self.phase.name, "iteration": number, **numbers, "time/seconds": done.seconds})
            state.save(self.state_file, done, self.recurrence, iteration.optimizer)
            self.lines.add(done.lines[-1])
            work.logger.log(number, numbers)
            work.console.line(show.iteration_line(done.lines))
        self._report(done)
        return done

    def _show(self, done: State) -> None:
        """The lines of the iterations that are done already."""
        for number, line in enumerate(done.lines, 1):
            self.lines.add(line)
            self.work.console.line(show.iteration_line(done.lines[:number], clock=False))

    def _converged(self, done: State) -> bool:
        return bool(done.lines) and bool(done.lines[-1]["phase1/converged"] >= self.phase.stop)

    def _ended(self, done: State) -> bool:
        enough = done.iteration >= self.phase.least and self._converged(done)
        return done.iteration >= self.phase.iterations or enough

    def _report(self, done: State) -> None:
        loss = done.lines[-1]["phase1/loss"] if done.lines else None
        progress = {"phase": self.phase.name, "step": done.iteration, "steps": self.phase.iterations, "loss": loss}
        self.work.directory.update_status(progress=progress)

    def _store(self, side: Side, previous: np.ndarray) -> None:
        """All layers' contexts of a side, from those that the last iteration left or by the true recurrence."""
        path, shape, precision = self._place(side), self._shape(side), self.work.precision
        if open_contexts(path, shape, precision) is not None:
            return
        since = time.monotonic()
        if side == "train" and self.phase.train_contexts == "parallel":
            size = self.phase.rule.batch_tokens
            pieces = parallel_contexts(self.recurrence, self.texts[side], previous, size, precision)
        else:
            pieces = true_contexts(self.recurrence, self.texts[side], precision)
        write_contexts(path, shape, _between(pieces, self.work.signals), precision)
        self.work.console.line(show.stored(side, shape, path, time.monotonic() - since))

    def _contexts(self) -> Contexts | None:
        """What has been stored; None if it is not all there."""
        if set(self.texts) != set(SIDES):
            return None
        train, val = (open_contexts(self._place(side), self._shape(side), self.work.precision) for side in SIDES)
        return None if train is None or val is None else Contexts(train, val)

    def _place(self, side: Side) -> Path:
        return self.folder / f"contexts.{side}.bin"

    def _shape(self, side: Side) -> Shape:
        return len(self.texts[side]), self.recurrence.layers, self.recurrence.width

    def _metrics(self, done: State, previous: np.ndarray) -> dict[str, float]:
        rank = effective_rank(previous, seed=self.phase.seed)
        last = {key: value for key, value in done.lines[-1].items() if key.startswith("phase1/")}
        return {
            "phase1/iterations": done.iteration,
            "phase1/steps": done.steps,
            **last,
            "phase1/reached": float(self._converged(done)),
            "context/rank@train": rank,
            "context/rank_share@train": rank / previous.shape[1],
        }


def _between(pieces: Iterable[Piece], signals: Signals) -> Iterator[Piece]:
    for piece in pieces:
        signals.check()
        yield piece


def _tell(signals: Signals, bar: Any, size: int, began: float, batch: int, loss: float) -> None:
    signals.check()
    bar.update(batch, loss, batch * size / max(time.monotonic() - began, 1e-9))
