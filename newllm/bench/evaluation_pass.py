"""Evaluation of long rows and of the reversal facts: what encodings cost, what memory it takes, and both against plain
code. Contestants take turns in one process.

Encodings: the losses of a row of `length` tokens by models that differ only in the encoding, against plain causal
attention (nope). Memory: the peak for rows of a quarter, half and all of these tokens. Long rows: losses as newllm's
evaluators compute them, against cross-entropy of all logits. Facts: every question with its right and wrong names,
against rows padded to the longest and all logits. The models have new weights; the text is real. Peak memory counts
tensors, including the parameters.

  length          tokens of the longest row           rounds   turns of each contestant
  logits_length   tokens of the row that is also      facts    measure the facts too
                  scored from all its logits
"""

import statistics
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from newllm.bench.harness import Result, alternate, setup_metrics
from newllm.config import compose
from newllm.data.facts import IGNORED, ReversalFacts
from newllm.evaluation.limits import row_bytes
from newllm.evaluation.reversal import answer
from newllm.evaluation.scoring import score
from newllm.evaluation.subject import Subject
from newllm.model import build_model
from newllm.run.prepare import prepare, subject
from newllm.training.memory import peak_bytes

DEFAULTS = ["model=pythia_70m", "pos_encoding=alibi", "samples=10"]
ENCODINGS = ("nope", "rope", "alibi")  # the first is the reference


def measure(
    overrides: list[str], *, length: int = 16384, logits_length: int = 8192, rounds: int = 3, facts: bool = True
) -> Result:
    """ratio/<encoding>: time of a long row over nope's, lower is better; seconds/<encoding>/encoding;

    memory/peak_bytes@<tokens>, memory/estimated_bytes@<tokens> (without the weights), memory/bytes_per_token;
    long/tokens_per_second/<contestant>, long/peak_bytes/<contestant>, ratio/long, ratio/long_memory; ratio/reversal;
    seconds/<contestant>/long and …/reversal; difference/long and difference/reversal: largest differences in nats.
    """
    overrides = [*overrides, f"seq_len={length}", "facts=none", "eval=[]"]
    run = prepare(compose(overrides))
    run.model.eval()
    setup = setup_metrics(run.cfg, run.precision, run.device, run.runtime)
    result = Result({**setup, "length": length, "logits_length": min(length, logits_length), "rounds": rounds})
    result.notes.append(f"Medians of {rounds} rounds. Times over nope's are better when lower; 1.00 x is as fast.")
    shape = f"{run.cfg.choices.model}, {result.setup}"
    evaluated = subject(run)
    row, labels = next(evaluated.batches(size=1))
    _encodings(result, overrides, evaluated, row, labels, rounds, shape)
    _memory(result, evaluated, row, labels, f"{shape}, {run.cfg.choices.pos_encoding}")
    _long(result, evaluated, row[:, :logits_length], labels[:, :logits_length], rounds, shape)
    if facts:
        _facts(result, evaluated, rounds, shape)
    return result


def _encodings(
    result: Result, overrides: list[str], subject: Subject, row: Tensor, labels: Tensor, rounds: int, shape: str
) -> None:
    """The losses of one row with each encoding, everything else equal."""
    others = [word for word in overrides if not word.startswith(("pos_encoding=", "pos_encoding."))]
    contestants = {}
    for name in ENCODINGS:
        cfg = compose([*others, f"pos_encoding={name}"], unused_axes=True)
        model = build_model(cfg, tokens=subject.data.tokenizer.vocab_size).to(subject.device).eval()
        contestants[name] = partial(replace(subject, model=model).losses_of, row, labels)
    seconds = alternate(contestants, rounds)
    rows = []
    for name, times in seconds.items():
        result.metrics[f"seconds/{name}/encoding"] = times
        relative = "" if name == ENCODINGS[0] else result.ratio(f"ratio/{name}", times, seconds[ENCODINGS[0]])
        median = statistics.median(times)
        rows.append([name, f"{median:.2f}", f"{row.shape[1] / median:,.0f}", relative])
    columns = ["encoding", "seconds", "tokens per second", f"time over {ENCODINGS[0]}'s (min … max)"]
    result.table(f"Losses of a row of {row.shape[1]:,} tokens: {shape}", columns, rows)


def _memory(result: Result, subject: Subject, row: Tensor, labels: Tensor, shape: str) -> None:
    """Peak memory for the losses of rows of a quarter, half and all of the tokens."""
    metrics, length = result.metrics, row.shape[1]
    with subject.computing() as cast:
        resident = [*subject.model.parameters(), *subject.model.buffers(), *cast.parameters(), row, labels]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in resident}
    weights = sum(storages.values())
    heads = subject.config.model.heads
    rows: list[list[str]] = []
    shorter = shorter_peak = 0
    for tokens in (length // 4, length // 2, length):
        losses = partial(subject.losses_of, row[:, :tokens], labels[:, :tokens])
        peak = metrics[f"memory/peak_bytes@{tokens}"] = peak_bytes(losses, resident, subject.device)
        estimated = metrics[f"memory/estimated_bytes@{tokens}"] = row_bytes(subject.model, tokens)
        per_token = ""
        if rows:
            metrics["memory/bytes_per_token"] = (peak - shorter_peak) / (tokens - shorter)
            per_token = f"{metrics['memory/bytes_per_token']:,.0f}"
        shorter, shorter_peak = tokens, peak
        megabytes = [f"{count / 1e6:,.0f}" for count in (peak, peak - weights, estimated, 4 * heads * tokens**2)]
        rows.append([f"{tokens:,}", *megabytes, per_token])
    columns = ["tokens", "MB at its peak", "without weights", "estimated", "T x T scores", "bytes per added token"]
    result.table(f"Memory of the losses of a row: {shape}", columns, rows)


def _long(result: Result, subject: Subject, inputs: Tensor, labels: Tensor, rounds: int, shape: str) -> None:
    """The losses of a row against cross-entropy of all its logits."""
    contestants = {
        "newllm": partial(subject.losses_of, inputs, labels),
        "all_logits": partial(_all_logits, subject, inputs, labels),
    }
    metrics = result.metrics
    metrics["difference/long"] = float((contestants["newllm"]() - contestants["all_logits"]()).abs().max())
    resident = [*subject.model.parameters(), *subject.model.buffers(), inputs, labels]
    for name, losses in contestants.items():
        metrics[f"long/peak_bytes/{name}"] = peak_bytes(losses, resident, subject.device)
    seconds = alternate(contestants, rounds)
    result.ratio("ratio/long", seconds["all_logits"], seconds["newllm"])
    metrics["ratio/long_memory"] = metrics["long/peak_bytes/all_logits"] / metrics["long/peak_bytes/newllm"]
    gains = [f"{metrics['ratio/long']:.2f} x", f"{metrics['ratio/long_memory']:.2f} x"]
    rows = []
    for name, label, cells in (("newllm", "newllm", gains), ("all_logits", "all logits at once", ["", ""])):
        metrics[f"seconds/{name}/long"] = seconds[name]
        speed = metrics[f"long/tokens_per_second/{name}"] = labels.numel() / statistics.median(seconds[name])
        rows.append([label, f"{speed:,.0f}", f"{metrics[f'long/peak_bytes/{name}'] / 1e9:.2f}", *cells])
    columns = ["losses of a row", "tokens per second", "GB at its peak", "faster", "less memory"]
    result.table(f"A row of {labels.numel():,} tokens: {shape}", columns, rows)


def _facts(result: Result, subject: Subject, rounds: int, shape: str) -> None:
    """The scores of all answers against padded rows and all their logits."""
    questions = [*ReversalFacts().forward, *ReversalFacts().backward]
    answers = [answer(subject, q.prompt, name, [0]) for q in questions for name in (q.answer, *q.wrong)]
    contestants = {
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


@torch.no_grad()  # inference mode would hide the tensors inside cross-entropy from the count of memory
def _all_logits(subject: Subject, inputs: Tensor, labels: Tensor) -> Tensor:
    """Nats [B, T] by cross-entropy of the fp32 logits of all positions."""
    with subject.autocast():
        logits = subject.model(inputs)
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.view_as(labels)


def _padded(subject: Subject, answers: list[tuple[list[int], list[int]]]) -> list[np.ndarray]:
    """Nats of the answers: batches in the order of the questions, all rows as long as the longest."""
    rows = [torch.tensor([*prompt, *name]) for prompt, name in answers]
    scored = [torch.tensor([*[IGNORED] * len(prompt), *name]) for prompt, name in answers]
    inputs = pad_sequence(rows, batch_first=True)[:, :-1].split(subject.batch_size)
    labels = pad_sequence(scored, batch_first=True, padding_value=IGNORED)[:, 1:].split(subject.batch_size)
    nats: list[np.ndarray] = []
    for batch, batch_labels in zip(inputs, labels, strict=True):
        losses = _all_logits(subject, batch.to(subject.device), batch_labels.to(subject.device)).cpu().double()
        nats += [row[label != IGNORED].numpy() for row, label in zip(losses, batch_labels, strict=True)]
    return nats
