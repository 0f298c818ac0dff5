"""The two costs of the context/token model: the true recurrence over a long text, and an iteration of phase 1.

Phase 1 first trains each shape for some iterations, each of which is timed, since how fast a recurrence forgets depends
on its weights. Then the contexts of a text are computed in three ways, in turns: token by token, token by token with
the inputs' share of the products computed beforehand, and by newllm, in segments side by side whose starts are
corrected until they agree. The text is real; the embeddings are new.

  shapes       layers x context_dim x num_input_tokens of each model    tokens       of the text
  iterations   of phase 1, including the random start                   rounds       turns of each contestant
  loop_tokens  first tokens of the text, which the loops read: their cost per token is the same everywhere
"""

import re
import statistics
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from newllm.bench.harness import Result, alternate, setup_metrics
from newllm.config import compose
from newllm.errors import ConfigError
from newllm.precision import Precision, autocast
from newllm.run.prepare import prepare
from newllm.two_phase.fixed_point import FixedPoint, Iteration
from newllm.two_phase.recurrence import Recurrence
from newllm.two_phase.stored_contexts import Text, true_contexts

SHAPES = "3x1536x2,6x768x1"
DEFAULTS = ["model=context_token", "precision=fp32", "samples=300"]
LABELS = {"newllm": "newllm", "ahead": "loop, inputs ahead", "loop": "loop"}
PORTION = 2048  # tokens whose inputs' share is computed at once


def measure(
    overrides: list[str],
    *,
    shapes: str = SHAPES,
    tokens: int = 31024,
    loop_tokens: int = 2000,
    iterations: int = 10,
    rounds: int = 3,
) -> Result:
    """ratio/<shape>/<contestant>: how many times faster newllm is per token (contestants loop, ahead);

    seconds/<shape>/<contestant>: for all tokens, or for `loop_tokens`; tokens_per_second/<shape>/<contestant>;
    difference/<shape>/newllm, …/ahead: largest difference of a context from the loop's, for `ahead` by rounding alone;
    seconds/<shape>/iteration: of each iteration of phase 1; iteration/<shape>/tokens_per_second; phase1/<shape>/loss,
    …/bound, …/converged: after the last iteration.
    """
    if iterations < 2:
        raise ConfigError(f"iterations must be at least 2, the first being the random start; got {iterations}.")
    for shape in shapes.split(","):
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", shape):
            raise ConfigError(
                f"shapes has {shape!r}; expected layers x context_dim x num_input_tokens, as in shapes={SHAPES}."
            )
    loop_tokens = min(loop_tokens, tokens)
    sizes = {"newllm": tokens, "ahead": loop_tokens, "loop": loop_tokens}
    result = Result({"tokens": tokens, "loop_tokens": loop_tokens, "iterations": iterations, "rounds": rounds})
    metrics = result.metrics
    pass_rows, phase_rows = [], []
    for shape in shapes.split(","):
        keys = ("layers", "context_dim", "num_input_tokens")
        options = [f"model.{key}={size}" for key, size in zip(keys, shape.split("x"), strict=True)]
        run = prepare(compose([*overrides, "embeddings=none", "eval=[]", *options]))
        recurrence, phase = getattr(run.model, "recurrence", None), run.stages.get("phase1")
        if not isinstance(recurrence, Recurrence) or not isinstance(phase, FixedPoint):
            raise ConfigError(f"model={run.cfg.choices.model} has no contexts to train; type model=context_token.")
        metrics |= setup_metrics(run.cfg, run.precision, run.device, run.runtime)
        stream = run.data.stream("train")
        text = Text(run.model.eval(), np.resize(stream, tokens), run.device)

        seconds_each, losses = _train(phase, recurrence, text, run.precision, iterations)
        median = statistics.median(seconds_each)
        metrics |= {f"phase1/{shape}/{name}": value for name, value in losses.items()}
        metrics[f"seconds/{shape}/iteration"] = seconds_each
        speed = metrics[f"iteration/{shape}/tokens_per_second"] = tokens / median
        reached = [f"{losses['loss']:.4f}", f"{losses['bound']:.4f}", f"{losses['converged']:.0%}"]
        phase_rows.append([shape, f"{median:.2f}", f"{speed:,.0f}", *reached])

        contexts = {name: torch.empty(size, recurrence.width) for name, size in sizes.items()}
        contestants = {
            "newllm": partial(_side_by_side, recurrence, text, run.precision, contexts["newllm"]),
            "ahead": partial(_token_by_token, recurrence, text, run.precision, contexts["ahead"], ahead=True),
            "loop": partial(_token_by_token, recurrence, text, run.precision, contexts["loop"], ahead=False),
        }
        seconds = alternate(contestants, rounds)
        for name, times in seconds.items():
            metrics[f"seconds/{shape}/{name}"] = times
            speed = metrics[f"tokens_per_second/{shape}/{name}"] = sizes[name] / statistics.median(times)
            faster = differs = ""
            if name != "newllm":
                for_loop_tokens = [loop_tokens / tokens * one for one in seconds["newllm"]]
                faster = result.ratio(f"ratio/{shape}/{name}", times, for_loop_tokens)
            if name != "loop":
                difference = float((contexts[name][:loop_tokens] - contexts["loop"]).abs().max())
                metrics[f"difference/{shape}/{name}"], differs = difference, f"{difference:.1e}"
            cells = [f"{statistics.median(times):.2f}", f"{speed:,.0f}", faster, differs]
            pass_rows.append([f"{shape}, {LABELS[name]}", *cells])
    del metrics["model"]  # its sizes are the shapes
    result.notes.append(
        f"Medians of {rounds} rounds, minimum and maximum in brackets. The loops read only the first {loop_tokens:,} "
        "tokens; with inputs ahead, what the inputs add is computed for many tokens in one product. Differences are of "
        "contexts from the loop's."
    )
    if tokens > len(stream):
        result.notes.append(f"The text of {len(stream):,} tokens is repeated.")
    setting = f"{tokens:,} tokens, {result.setup}"
    columns = ["shape and pass", "seconds", "tokens/s", "newllm is faster", "largest difference"]
    result.table(f"True contexts: {setting}", columns, pass_rows)
    columns = ["shape", "seconds", "tokens/s", "loss", "bound", "converged"]
    result.table(f"An iteration of phase 1: {setting}", columns, phase_rows)
    return result


def _train(
    phase: FixedPoint, recurrence: Recurrence, text: Text, precision: Precision, count: int
) -> tuple[list[float], dict[str, float]]:
    """Seconds of each iteration after the random start, and loss, bound and converged share of the last one."""
    seconds = []
    with TemporaryDirectory() as folder:
        iteration = Iteration(phase, recurrence, text, precision, Path(folder))
        iteration.draw_start()
        for number in range(2, count + 1):
            start = time.perf_counter()
            losses = iteration.run(number, lambda batch, loss: None)
            seconds.append(time.perf_counter() - start)
    recurrence.requires_grad_(False)
    return seconds, losses


def _side_by_side(recurrence: Recurrence, text: Text, precision: Precision, out: Tensor) -> None:
    for (start, stop), states in true_contexts(recurrence, text, precision):
        out[start:stop] = states[:, -1].float()


@torch.no_grad()
def _token_by_token(recurrence: Recurrence, text: Text, precision: Precision, out: Tensor, *, ahead: bool) -> None:
    """The first len(out) contexts. ahead: compute the inputs' share of many tokens in one product."""
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
