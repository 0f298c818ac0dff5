"""Evaluation of long rows and of the reversal facts: what encodings cost, what memory it takes, and both against the
way one writes it first; turns in one process.

Encodings: the losses of a row of `length` tokens by models that differ in the encoding alone, against plain causal
attention (nope). Memory: the peak of rows of a quarter, half and all of these tokens. Long rows: losses as
newllm's evaluators take them, against cross-entropy of all logits. Facts: every question with its right and
wrong names, against rows padded to the longest and all logits. The models have new weights; the text is real. Peak
memory counts tensors, the parameters among them.

  length          tokens of the longest row           rounds   turns of each contestant
  logits_length   tokens of the row that is also      facts    the last part as well
                  scored by all its logits
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.bench.harness import Result, Setup, alternate, discarding
from newllm.config import compose
from newllm.data.facts import ReversalFacts
from newllm.evaluation.limits import row_bytes
from newllm.evaluation.reversal import answer
from newllm.evaluation.scoring import score
from newllm.evaluation.subject import Subject
from newllm.model import Transformer, build_model
from newllm.precision import autocast
from newllm.training.memory import peak_bytes

DEFAULTS = ["model=pythia_70m", "pos_encoding=alibi", "samples=10"]
ENCODINGS = ("nope", "rope", "alibi")  # the others are compared with the first


def measure(
    overrides: list[str], *, length: int = 16384, logits_length: int = 8192, rounds: int = 3, facts: bool = True
) -> Result:
    """ratio/<encoding>: time of a long row against nope's, lower is better; seconds/<encoding>/encoding.

    memory/peak_bytes@<tokens>, memory/estimated_bytes@<tokens> (beside the weights), memory/bytes_per_token;
    long/tokens_per_second/<contestant>, long/peak_bytes/<contestant>, ratio/long, ratio/long_memory; ratio/reversal;
    seconds/<contestant>/long and …/reversal of every round; largest differences of the nats.
    """
    setup = Setup([*overrides, f"seq_len={length}", "facts=none"])
    data, device = setup.data(), setup.device
    model = build_model(setup.cfg, tokens=data.tokenizer.vocab_size).to(device).eval()
    cast = partial(autocast, device, setup.precision)
    subject = Subject(model, data, device, cast, setup.cfg.trainer.batch_size, setup.cfg)
    shape = f"{setup.cfg.choices.model}, {setup.machine}"
    result = Result(
        {**setup.metrics, "length": length, "logits_length": min(length, logits_length), "rounds": rounds},
        notes=[f"Medians of {rounds} rounds. Times against nope are better when lower, 1.00 x is as fast."],
    )
    row, labels = next(subject.batches(size=1))
    _encodings(result, overrides, subject, row, labels, rounds, shape)
    _memory(result, subject, row, labels, f"{shape}, {setup.cfg.choices.pos_encoding}")
    _long(result, subject, row[:, :logits_length], labels[:, :logits_length], rounds, shape)
    if facts:
        _facts(result, subject, rounds, shape)
    return result


def _encodings(
    result: Result, overrides: list[str], subject: Subject, row: Tensor, labels: Tensor, rounds: int, shape: str
) -> None:
    """The losses of one row by each encoding, everything else the same."""
    length = row.shape[1]
    others = [word for word in overrides if not word.startswith(("pos_encoding=", "pos_encoding."))]
    contestants = {}
    for name in ENCODINGS:
        cfg = compose([*others, f"pos_encoding={name}", f"seq_len={length}", "facts=none"], unused_axes=True)
        model = build_model(cfg, tokens=subject.data.tokenizer.vocab_size).to(subject.device).eval()
        contestants[name] = partial(replace(subject, model=model).losses_of, row, labels)
    seconds = alternate(contestants, rounds)
    rows = []
    for name, times in seconds.items():
        result.metrics[f"seconds/{name}/encoding"] = times
        against = "" if name == ENCODINGS[0] else result.ratio(f"ratio/{name}", times, seconds[ENCODINGS[0]])
        median = statistics.median(times)
        rows.append([name, f"{median:.2f}", f"{length / median:,.0f}", against])
    columns = ["encoding", "seconds", "tokens per second", f"time against {ENCODINGS[0]} (min … max)"]
    result.table(f"Losses of a row of {length:,} tokens: {shape}", columns, rows)


def _memory(result: Result, subject: Subject, row: Tensor, labels: Tensor, shape: str) -> None:
    """Peak memory of the losses of rows of a quarter, half and all of the tokens."""
    metrics, length = result.metrics, row.shape[1]
    assert isinstance(subject.model, Transformer)
    with subject.computing() as cast:
        held = [*subject.model.parameters(), *subject.model.buffers(), *cast.parameters(), row, labels]
    weights = sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}.values())
    rows: list[list[str]] = []
    before = None
    for tokens in (length // 4, length // 2, length):
        call = partial(subject.losses_of, row[:, :tokens], labels[:, :tokens])
        peak = metrics[f"memory/peak_bytes@{tokens}"] = peak_bytes(discarding(call), held, subject.device)
        estimated = metrics[f"memory/estimated_bytes@{tokens}"] = row_bytes(subject.model, tokens)
        squares = 4 * subject.model.heads * tokens**2
        further = ""
        if before is not None:
            metrics["memory/bytes_per_token"] = (peak - before[1]) / (tokens - before[0])
            further = f"{metrics['memory/bytes_per_token']:,.0f}"
        before = tokens, peak
        megabytes = [f"{count / 1e6:,.0f}" for count in (peak, peak - weights, estimated, squares)]
        rows.append([f"{tokens:,}", *megabytes, further])
    columns = ["tokens", "MB at its peak", "beside the weights", "estimated", "T x T scores", "bytes a further token"]
    result.table(f"Memory of the losses of a row: {shape}", columns, rows)


def _long(result: Result, subject: Subject, inputs: Tensor, labels: Tensor, rounds: int, shape: str) -> None:
    contestants = {
        "newllm": partial(subject.losses_of, inputs, labels),
        "all_logits": partial(_all_logits, subject, inputs, labels),
    }
    metrics = result.metrics
    metrics["difference/long"] = float((contestants["newllm"]() - contestants["all_logits"]()).abs().max())
    held = [*subject.model.parameters(), *subject.model.buffers(), inputs, labels]
    for name, call in contestants.items():
        metrics[f"long/peak_bytes/{name}"] = peak_bytes(discarding(call), held, subject.device)
    seconds = alternate(contestants, rounds)
    result.ratio("ratio/long", seconds["all_logits"], seconds["newllm"])
    metrics["ratio/long_memory"] = metrics["long/peak_bytes/all_logits"] / metrics["long/peak_bytes/newllm"]
    better = f"{metrics['ratio/long']:.2f} x", f"{metrics['ratio/long_memory']:.2f} x"
    rows = []
    for name, label, cells in (("newllm", "newllm", better), ("all_logits", "all logits at once", ("", ""))):
        metrics[f"seconds/{name}/long"] = seconds[name]
        speed = metrics[f"long/tokens_per_second/{name}"] = labels.numel() / statistics.median(seconds[name])
        rows.append([label, f"{speed:,.0f}", f"{metrics[f'long/peak_bytes/{name}'] / 1e9:.2f}", *cells])
    columns = ["losses of a row", "tokens per second", "GB at its peak", "faster", "less memory"]
    result.table(f"A row of {labels.numel():,} tokens: {shape}", columns, rows)


def _facts(result: Result, subject: Subject, rounds: int, shape: str) -> None:
    questions = [*ReversalFacts().forward, *ReversalFacts().backward]
    answers = [answer(subject, q.prompt, name, [0]) for q in questions for name in (q.answer, *q.wrong)]
    contestants: dict[str, Callable[[], list[np.ndarray]]] = {
        "newllm": partial(score, subject, answers, subject.model.seq_len + 1),
        "padded": partial(_padded, subject, answers),
    }
    pairs = zip(contestants["newllm"](), contestants["padded"](), strict=True)
    result.metrics["difference/reversal"] = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
    seconds = alternate(contestants, rounds)
    result.metrics |= {f"seconds/{name}/reversal": times for name, times in seconds.items()}
    result.ratio("ratio/reversal", seconds["padded"], seconds["newllm"])
    rows = [
        ["newllm", f"{statistics.median(seconds['newllm']):.2f}", f"{result.metrics['ratio/reversal']:.2f} x"],
        ["padded rows, all logits", f"{statistics.median(seconds['padded']):.2f}", ""],
    ]
    title = f"{len(questions)} questions, {len(answers)} answers: {shape}"
    result.table(title, ["scoring", "seconds", "faster"], rows)


@torch.no_grad()  # inference mode would hide what cross-entropy makes inside from the count of memory
def _all_logits(subject: Subject, inputs: Tensor, labels: Tensor) -> Tensor:
    """Nats [B, T] by cross-entropy of the fp32 logits of all positions."""
    with subject.autocast():
        logits = subject.model(inputs)
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    return losses.view_as(labels)


def _padded(subject: Subject, answers: list[tuple[list[int], list[int]]]) -> list[np.ndarray]:
    """Nats of the answers: batches in the order of the questions, all rows as long as the longest."""
    width = max(len(prompt) + len(name) for prompt, name in answers) - 1
    nats = []
    for start in range(0, len(answers), subject.batch_size):
        batch = answers[start : start + subject.batch_size]
        inputs = torch.zeros(len(batch), width, dtype=torch.int64)
        labels = torch.full_like(inputs, -100)
        for row, (prompt, name) in enumerate(batch):
            ids = [*prompt, *name]
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            labels[row, len(prompt) - 1 : len(ids) - 1] = torch.tensor(name)
        losses = _all_logits(subject, inputs.to(subject.device), labels.to(subject.device)).cpu().double()
        nats += [losses[row][labels[row] != -100].numpy() for row in range(len(batch))]
    return nats
