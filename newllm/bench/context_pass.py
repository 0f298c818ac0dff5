"""The context/token model's two costs: the true recurrence over a long text, and an iteration of phase 1.

Phase 1 first trains each shape for some iterations, every one of which is timed, since how fast a recurrence forgets
depends on its weights. Then its contexts of a text are made three ways in turns: token by token as one writes it first,
token by token with the inputs' share of the products made beforehand, and by newllm, in segments side by side whose
starts are corrected until they agree. The text is real; the embeddings are new.

  shapes       layers x context_dim x num_input_tokens of each model    tokens       of the text
  iterations   of phase 1, the random start among them                  rounds       turns of each contestant
  loop_tokens  of the text's beginning, which the loops read: their cost per token is the same anywhere
"""

import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from newllm.bench.harness import Result, Setup, alternate
from newllm.build import build
from newllm.config import compose
from newllm.errors import ConfigError
from newllm.model import build_model
from newllm.precision import Precision, autocast
from newllm.two_phase.fixed_point import Iteration
from newllm.two_phase.recurrence import Recurrence
from newllm.two_phase.stored_contexts import Text, true_contexts

SHAPES = "3x1536x2,6x768x1"
DEFAULTS = ["model=context_token", "precision=fp32", "samples=300"]
LABELS = {"newllm": "newllm", "ahead": "loop, inputs ahead", "loop": "loop"}
PORTION = 2048  # tokens whose inputs' share is made at once


def measure(
    overrides: list[str],
    *,
    shapes: str = SHAPES,
    tokens: int = 31024,
    loop_tokens: int = 2000,
    iterations: int = 10,
    rounds: int = 3,
) -> Result:
    """ratio/<shape>/<contestant>: how many times faster newllm is a token (loop, ahead).

    seconds/<shape>/<contestant>: of all tokens, or of the loops' ones; tokens_per_second/<shape>/<contestant>;
    difference/<shape>/newllm, …/ahead: largest difference of a context from the loop's, the second by rounding alone;
    seconds/<shape>/iteration: of each iteration of phase 1; iteration/<shape>/tokens_per_second; phase1/<shape>/loss,
    …/bound, …/converged: where it got to.
    """
    sizes = [_sizes(shape) for shape in shapes.split(",")]
    if iterations < 2:
        raise ConfigError(f"iterations must be at least 2, the first being the random start; got {iterations}.")
    overrides = [*overrides, "embeddings=none"]
    setup = Setup(overrides)
    data = setup.data()
    stream = data.stream("train")
    ids = np.resize(stream, tokens)
    loop_tokens = min(loop_tokens, tokens)
    result = Result(
        {**setup.metrics, "tokens": tokens, "loop_tokens": loop_tokens, "iterations": iterations, "rounds": rounds},
        notes=[
            f"Medians of {rounds} rounds, least and greatest in brackets. The loop goes token by token, through "
            f"the first {loop_tokens:,} tokens; with inputs ahead, what the inputs add is made for many tokens in one "
            "product. Differences are of contexts from the loop's."
        ],
    )
    del result.metrics["model"]  # its sizes are the shapes
    if tokens > len(stream):
        result.notes.append(f"The text of {len(stream):,} tokens is repeated.")
    passes: list[list[str]] = []
    phases: list[list[str]] = []
    for shape, size in zip(shapes.split(","), sizes, strict=True):
        keys = ("layers", "context_dim", "num_input_tokens")
        cfg = compose([*overrides, *(f"model.{key}={value}" for key, value in zip(keys, size, strict=True))])
        model = build_model(cfg, tokens=data.tokenizer.vocab_size).to(setup.device).eval()
        recurrence = getattr(model, "recurrence", None)
        if not isinstance(recurrence, Recurrence):
            raise ConfigError(f"model={cfg.choices.model} has no recurrence; type model=context_token.")
        text = Text(model, ids, setup.device)
        phases.append(_phase1(result, shape, cfg, recurrence, text, setup.precision, iterations))
        passes += _passes(result, shape, recurrence, text, loop_tokens, setup.precision, rounds)
    said = f"{tokens:,} tokens, {setup.machine}"
    columns = ["shape and pass", "seconds", "tokens/s", "newllm is faster", "largest difference"]
    result.table(f"True contexts: {said}", columns, passes)
    columns = ["shape", "seconds", "tokens/s", "loss", "bound", "converged"]
    result.table(f"An iteration of phase 1: {said}", columns, phases)
    return result


def _sizes(shape: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", shape):
        raise ConfigError(
            f"shapes has {shape!r}; expected layers x context_dim x num_input_tokens, as in shapes={SHAPES}."
        )
    return [int(size) for size in shape.split("x")]


def _phase1(
    result: Result, shape: str, cfg: DictConfig, recurrence: Recurrence, text: Text, precision: Precision, count: int
) -> list[str]:
    """Train the recurrence and time each iteration after the random start; a row of the table."""
    phase = build(cfg.phase1, objective=OmegaConf.to_container(cfg.objective, resolve=True), seed=cfg.trainer.seed)
    recurrence.requires_grad_(True)
    seconds = []
    with TemporaryDirectory() as folder:
        iteration = Iteration(phase, recurrence, text, precision, Path(folder))
        iteration.draw_start()
        for number in range(2, count + 1):
            begun = time.perf_counter()
            found = iteration.run(number, lambda batch, loss: None)
            seconds.append(time.perf_counter() - begun)
    recurrence.requires_grad_(False)
    middle = statistics.median(seconds)
    result.metrics |= {f"phase1/{shape}/{name}": value for name, value in found.items()}
    result.metrics[f"seconds/{shape}/iteration"] = seconds
    result.metrics[f"iteration/{shape}/tokens_per_second"] = len(text) / middle
    row = [shape, f"{middle:.2f}", f"{len(text) / middle:,.0f}", f"{found['loss']:.4f}", f"{found['bound']:.4f}"]
    return [*row, f"{found['converged']:.0%}"]


def _passes(
    result: Result, shape: str, recurrence: Recurrence, text: Text, some: int, precision: Precision, rounds: int
) -> list[list[str]]:
    sizes = {"newllm": len(text), "ahead": some, "loop": some}
    made: dict[str, Tensor] = {name: torch.empty(size, recurrence.width) for name, size in sizes.items()}
    contestants: dict[str, Callable[[], object]] = {
        "newllm": partial(_side_by_side, recurrence, text, precision, made["newllm"]),
        "ahead": partial(_token_by_token, recurrence, text, precision, made["ahead"], ahead=True),
        "loop": partial(_token_by_token, recurrence, text, precision, made["loop"], ahead=False),
    }
    seconds = alternate(contestants, rounds)
    metrics = result.metrics
    for name in ("newllm", "ahead"):
        metrics[f"difference/{shape}/{name}"] = float((made[name][:some] - made["loop"]).abs().max())
    rows = []
    for name, times in seconds.items():
        metrics[f"seconds/{shape}/{name}"] = times
        speed = metrics[f"tokens_per_second/{shape}/{name}"] = sizes[name] / statistics.median(times)
        faster = ""
        if name != "newllm":
            scaled = [some / len(text) * one for one in seconds["newllm"]]
            faster = result.ratio(f"ratio/{shape}/{name}", times, scaled, digits=1)
        differs = "" if name == "loop" else f"{metrics[f'difference/{shape}/{name}']:.1e}"
        rows.append([f"{shape}, {LABELS[name]}", f"{statistics.median(times):.2f}", f"{speed:,.0f}", faster, differs])
    return rows


def _side_by_side(recurrence: Recurrence, text: Text, precision: Precision, out: Tensor) -> None:
    for (start, stop), states in true_contexts(recurrence, text, precision):
        out[start:stop] = states[:, -1].float()


@torch.no_grad()
def _token_by_token(recurrence: Recurrence, text: Text, precision: Precision, out: Tensor, *, ahead: bool) -> None:
    """The first len(out) contexts. ahead: the inputs' share of many tokens is made in one product."""
    context = torch.zeros(1, recurrence.width, device=text.device)
    with autocast(text.device, precision):
        for start in range(0, len(out), PORTION):
            stop = min(start + PORTION, len(out))
            inputs = text(start, stop)
            shares = recurrence.project(inputs) if ahead else None
            for at in range(stop - start):
                one = slice(at, at + 1)
                states = recurrence(context, inputs[one]) if shares is None else recurrence.step(context, shares[one])
                context = states[:, -1]
                out[start + at] = context[0].float()
