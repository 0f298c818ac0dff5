"""Perplexity at lengths other than the training length."""

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from newllm.data.dataset import Dataset, Rows
from newllm.data.facts import IGNORED
from newllm.errors import ConfigError, RunError
from newllm.evaluation.fingerprint import fingerprint
from newllm.evaluation.limits import check_lengths, parse_lengths, require_positive, require_room, try_length
from newllm.evaluation.subject import Evaluator, Findings, Subject, Table
from newllm.model import LanguageModel

_OPTION = "eval.extrapolation"
_METRICS = {"slices": "ppl", "tail": "tail_ppl", "sliding": "sliding_ppl"}


class Extrapolation(Evaluator):
    """Perplexity of the validation text in windows of other lengths N than the training length.

    slices: ``extrapolation/ppl@N``, exp of the mean loss of some of the windows ``val[i N : (i + 1) N]``, each read
    alone (N − 1 inputs, N − 1 targets): non-overlapping inference, as most length studies publish (Press et al. 2022,
    arXiv 2108.12409, appendix B). Each N scores different text, and the first tokens of a window have little context:
    this ranks models at one N and does not compare lengths.

    tail: ``extrapolation/tail_ppl@N``, of the last `tail` tokens of windows that end at the same places at every
    length. All N score the same targets, so the difference is what more context gains or costs. If the shortest length
    is below twice `tail`, half of that length is scored.

    positions: tables/extrapolation_positions.csv, the mean loss of the slices' targets with 1, 2 – 3, 4 – 7 … tokens
    before them; the perplexity is exp of the mean.

    sliding: ``extrapolation/sliding_ppl@N`` of windows of N tokens that advance by `stride` (null: N / 2) and score
    only their last `stride` tokens, so that each of these has at least N − stride tokens before it. All N score the
    same stretches of text, up to part of a stride at their ends.

    ``extrapolation/share@N``, ``tail_share@N``, ``sliding_share@N``: share of the validation tokens that are scored.

    Errors: ``se`` in the tables is the standard error of the mean loss as an estimate for text like this, clustered by
    document: √(G/(G − 1) Σ_g u_g²) / n, where u_g is the sum of the deviations from the mean of the targets in document
    g of G (Liang & Zeger 1986). Tokens of one document resemble each other, so the error over windows alone is too
    small. An interval takes Student's t with G − 1 degrees of freedom; with few documents, or long ones in a split of
    a single document, where windows take the place of documents, the error is rough.

    tables/extrapolation.csv has a line per length and protocol: windows (chunks), documents, tokens scored, loss with
    its error, and the UTF-8 bytes of the text scored. A length that fails is named there and does not affect the
    others. Perplexity hides many failures on long context, since most tokens need near context only (Fang et al. 2024,
    arXiv 2410.23771).

    lengths, sliding: tokens, or multiples of the training length as in "4x". chunks: windows of the greatest length, or
    fewer if the text is short; the windows of `tail` end where these do. windows: "spread" takes windows at equal
    distances over the whole validation text, and as many tokens at each length; "first", as published, the first
    `chunks` windows of each length, which are of the first documents only. Time is that of reading all these tokens;
    memory grows linearly with the length (`newllm.evaluation.limits`).
    """

    def __init__(
        self,
        lengths: list[int | str] = ["1x", "2x", "4x", "8x"],  # noqa: B006 (only read)
        chunks: int = 20,
        windows: Literal["spread", "first"] = "spread",
        slices: bool = True,
        tail: int | None = 256,
        positions: bool = True,
        sliding: list[int | str] = ["1x"],  # noqa: B006
        stride: int | None = None,
    ):
        check_lengths(lengths, f"{_OPTION}.lengths")
        check_lengths(sliding, f"{_OPTION}.sliding")
        if not lengths:
            raise ConfigError(f"{_OPTION}.lengths must have at least one length, as in [1x,2x,4x,8x]; got [].")
        require_positive(_OPTION, chunks=chunks, tail=tail, stride=stride)
        if not (slices or tail or positions or sliding):
            raise ConfigError(f"{_OPTION} has all its parts off: type {_OPTION}.slices=true, or leave it out of eval.")
        self.lengths, self.chunks, self.windows = lengths, chunks, windows
        self.slices, self.tail, self.positions = slices, tail, positions
        self.sliding, self.stride = sliding, stride

    def check(self, data: Dataset, model: LanguageModel) -> None:
        """Raises ConfigError for lengths that this text, encoding or memory has no room for.

        Adds a note to `data` if the text fills fewer windows of a length than `chunks`.
        """
        tokens = len(data.val_tokens)
        sliding = parse_lengths(self.sliding, model.seq_len, f"{_OPTION}.sliding")
        if sliding and self.stride is not None and self.stride >= sliding[0]:
            raise ConfigError(
                f"{_OPTION}.stride must be smaller than the window of {sliding[0]} tokens that moves by it, as in "
                f"{_OPTION}.stride={sliding[0] // 2}; got {self.stride}."
            )
        lengths = parse_lengths(self.lengths, model.seq_len, f"{_OPTION}.lengths")
        require_room(f"{_OPTION}.lengths", lengths, model, tokens)
        room = tokens * 2 // 3 if self.stride is None else tokens - self.stride  # for a window and a stride
        require_room(f"{_OPTION}.sliding", sliding, model, room)
        parts = self._parts(tokens, model.seq_len)
        fewer = [
            f"{len(part.starts)} windows of {part.length:,}"
            for part in parts
            if part.protocol == parts[0].protocol != "sliding"
            and len(part.starts) < self._wanted(part.length, lengths[-1])
        ]
        if fewer:
            data.notes.append(
                f"{_OPTION}.chunks={self.chunks} exceeds what {tokens:,} tokens of validation text hold: there are "
                f"{', '.join(fewer)}"
            )

    def __call__(self, subject: Subject) -> Findings:
        parts = self._parts(len(subject.data.val_tokens), subject.model.seq_len)
        rows: Table = []
        bins: Table = []
        failures = []
        seconds: dict[int, float] = defaultdict(float)  # shown but not stored, since tables are reproducible to the bit
        losses: np.ndarray | None = None
        before = parts[0]
        for part in parts:
            began = time.perf_counter()
            same = before.length == part.length and np.array_equal(before.starts, part.starts)
            if losses is not None and same and before.scored >= part.scored:
                losses, failed = losses[:, -part.scored :], ""
            else:
                losses, failed = try_length(subject, part.length, partial(_losses, subject, part))
            before = part
            if losses is not None and not np.isfinite(losses).all():
                losses, failed = None, "its loss is not finite"
            if failed:
                failures.append(f"{part.protocol} of {part.length:,} tokens: {failed}")
            numbers = {} if losses is None else _numbers(subject, part, losses)
            if self.slices or part.protocol != "slices":
                rows.append({"length": part.length, "protocol": part.protocol, "chunks": len(part.starts),
                             **numbers, "failed": failed})  # fmt: skip
            if self.positions and part.protocol == "slices" and losses is not None:
                groups = _documents(subject, part)
                bins += [{"length": part.length, **row} for row in _by_position(losses, groups)]
            seconds[part.length] += time.perf_counter() - began
        if len(failures) == len(parts):
            raise RunError(f"{_OPTION} has measured nothing: {failures[0]}.")

        measured = [row for row in rows if not row["failed"]]
        metrics = {
            f"extrapolation/{_METRICS[row['protocol']].replace('ppl', what)}@{row['length']}": row[what]
            for what in ("ppl", "share")
            for row in measured
        }
        body: list[str | Table] = []
        if rows:
            body = _screen(rows, {part.protocol: part for part in parts}, seconds, subject, self.windows)
        if bins:
            longest = bins[-1]["length"]
            columns = ("from", "to", "loss", "se", "ppl")
            body += [
                f"Loss by tokens of context (from ≤ t < to) in the slices of {longest:,} tokens",
                [{column: row[column] for column in columns} for row in bins if row["length"] == longest],
            ]
        body += [f"FAILED: {failure}" for failure in failures]
        body.append("Perplexity hides many long-context failures, since most tokens need near context only")
        tables = {"extrapolation": rows, "extrapolation_positions": bins}
        prints = {(part.protocol, part.length): _scored(subject, part) for part in parts}
        scored = {
            f"extrapolation/{_METRICS[protocol].replace('ppl', what)}@{length}": print_
            for (protocol, length), print_ in prints.items()
            for what in ("ppl", "share")
        }
        scored = {name: scored[name] for name in metrics}
        return Findings("Extrapolation", metrics, {name: t for name, t in tables.items() if t}, body, scored)

    def _parts(self, tokens: int, seq_len: int) -> list["Part"]:
        """All measurements on a text of `tokens` tokens, the shortest windows first."""
        lengths = parse_lengths(self.lengths, seq_len, f"{_OPTION}.lengths")
        sliding = parse_lengths(self.sliding, seq_len, f"{_OPTION}.sliding")
        parts = []
        windows = {length: self._choose(self._wanted(length, lengths[-1]), tokens // length) for length in lengths}
        ends = (windows[lengths[-1]] + 1) * lengths[-1]
        for length in lengths:
            if self.slices or self.positions:
                parts.append(Part("slices", windows[length] * length, length, scored=length - 1))
            if self.tail is not None:
                parts.append(Part("tail", ends - length, length, scored=min(self.tail, lengths[0] // 2)))
        for length in sliding:  # targets start after the longest window and cover whole strides
            longest, stride = sliding[-1], length // 2 if self.stride is None else self.stride
            if self.windows == "first":
                stretch, begins = min(tokens - longest, self.chunks * longest), np.array([longest])
            else:  # stretches of text as long as the longest window
                stretch = min(tokens - longest, longest)
                wanted = self._wanted(longest, max(lengths[-1], longest))
                begins = longest + stretch * self._choose(wanted, (tokens - longest) // stretch)
            ends = (begins[:, None] + stride * np.arange(1, stretch // stride + 1)).flatten()
            parts.append(Part("sliding", ends - length, length, scored=stride))
        return parts

    def _wanted(self, length: int, longest: int) -> int:
        """Number of windows of a length: as many tokens as `chunks` of the longest, or `chunks` as published."""
        return self.chunks if self.windows == "first" else -(-self.chunks * longest // length)

    def _choose(self, wanted: int, available: int) -> np.ndarray:
        """Numbers of the chosen ones of `available` windows, ascending, int64: the first, or at equal distances."""
        count = min(wanted, available)
        if self.windows == "first":
            return np.arange(count, dtype=np.int64)
        return (np.arange(count, dtype=np.int64) * 2 + 1) * available // (2 * max(count, 1))


@dataclass(frozen=True)
class Part:
    """The windows ``val[start : start + length]`` of one protocol and length."""

    protocol: str  # slices | tail | sliding
    starts: np.ndarray  # int64 [N]
    length: int  # length - 1 inputs and as many targets
    scored: int  # number of targets at the end of each window that are scored


def _losses(subject: Subject, part: Part) -> np.ndarray:
    """Nats fp32 [N, scored] of the scored targets of all windows."""
    losses = []
    for inputs, labels in subject.batches(Rows(subject.data.val_tokens, part.starts, part.length - 1)):
        labels[:, : part.length - 1 - part.scored] = IGNORED  # logits are computed for the scored targets only
        losses.append(subject.losses_of(inputs, labels)[:, -part.scored :].cpu().numpy())
    return np.concatenate(losses)


def _targets(part: Part) -> np.ndarray:
    """Places in the validation text of the scored targets of all windows, int64 [N, scored]."""
    return part.starts[:, None] + np.arange(part.length - part.scored, part.length)


def _scored(subject: Subject, part: Part) -> str:
    """Fingerprint of the targets that a part scores."""
    targets = _targets(part)
    return fingerprint(subject.data.tokenizer.digest, targets, subject.data.val_tokens[targets])


def _documents(subject: Subject, part: Part) -> np.ndarray:
    """Numbers of the documents of the targets [N, scored]; of the windows if all are of one document."""
    documents = subject.data.val.documents_at(_targets(part))
    if (documents == documents[0, 0]).all():
        return np.repeat(np.arange(len(documents))[:, None], documents.shape[1], axis=1)
    return documents


def _numbers(subject: Subject, part: Part, losses: np.ndarray) -> dict[str, Any]:
    """The columns of the table that describe the losses [N, scored]."""
    targets = _targets(part)
    loss, se = clustered_mean(losses, _documents(subject, part))
    documents = len(np.unique(subject.data.val.documents_at(targets)))
    share = len(np.unique(targets)) / len(subject.data.val_tokens)
    text_bytes = int(subject.data.val.text_bytes(targets).sum())
    bits_per_byte = loss * losses.size / math.log(2) / max(text_bytes, 1)
    sizes = {"documents": documents, "share": share, "tokens": losses.size, "loss": loss, "se": se}
    return {**sizes, "ppl": math.exp(loss), "bytes": text_bytes, "bits_per_byte": bits_per_byte}


def clustered_mean(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float | None]:
    """The mean of all values, and its standard error if values of one cluster depend on each other; None for a single
    cluster.

    values, clusters: arrays of one shape. Clusters of equal size: the standard error of the mean of their means.
    """
    mean = float(values.mean(dtype=np.float64))
    _, cluster_of = np.unique(clusters, return_inverse=True)
    sums = np.bincount(cluster_of.flatten(), weights=values.flatten().astype(np.float64) - mean)
    if len(sums) < 2:
        return mean, None
    return mean, float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / values.size)


def _by_position(losses: np.ndarray, documents: np.ndarray) -> Table:
    """Mean loss of the targets with 1, 2 – 3, 4 – 7 … tokens of context, from the losses [N, L − 1] of slices.

    documents: those of the targets, [N, L − 1], by which errors are clustered.

    from, to: tokens of context of a bin, from ≤ t < to. The token-weighted mean over bins is that of the slices.
    """
    length = losses.shape[1] + 1
    edges = [1 << power for power in range(length.bit_length()) if 1 << power < length]
    rows: Table = []
    for start, end in pairwise([*edges, length]):
        part = losses[:, start - 1 : end - 1]
        loss, se = clustered_mean(part, documents[:, start - 1 : end - 1])
        rows.append({"from": start, "to": end, "tokens": part.size, "loss": loss, "se": se, "ppl": float(np.exp(loss))})
    return rows


def _screen(
    rows: Table, parts: Mapping[str, Part], seconds: Mapping[int, float], subject: Subject, windows: str
) -> list[str | Table]:
    """A line per length: perplexity by protocol, details of the first protocol. Then explanations of the protocols.

    parts: the part of the longest windows of each protocol.
    """
    protocols = dict.fromkeys(row["protocol"] for row in rows)
    lines: Table = []
    for length in sorted({row["length"] for row in rows}):
        measured = [row for row in rows if row["length"] == length and not row["failed"]]
        line: dict[str, Any] = {"tokens": length, "trained": f"{length / subject.model.seq_len:g}x", **protocols}
        line |= {row["protocol"]: row["ppl"] for row in measured}
        for row in measured[:1]:
            line["± %"] = None if row["se"] is None else 100 * math.expm1(row["se"])
            line["windows"], line["documents"] = row["chunks"], row["documents"]
            line["of the text"] = f"{row['share']:.1%}"
        line["seconds"] = seconds[length]
        lines.append(line)
    body: list[str | Table] = [lines]
    where = "the first ones, as published" if windows == "first" else "spread over the validation text"
    documents = min((line["documents"] for line in lines if "documents" in line), default=0)
    if documents == 1:
        error = "the standard error over windows, all of one document, which makes it too small"
    else:
        error = f"the standard error, clustered by document (Student's t, {documents - 1} or more degrees of freedom)"
    body.append(f"± %: {error}; of the perplexity of {next(iter(protocols))}, whose windows are {where}")
    if "slices" in protocols:
        body.append(
            "slices: windows that do not overlap, each read alone; each length scores different text, so they rank "
            "models at one length"
        )
    if "tail" in protocols:
        tail = parts["tail"]
        places = f"{len(tail.starts)} places" if len(tail.starts) > 1 else "place"
        body.append(
            f"tail: the last {tail.scored} tokens of windows that end at the same {places}: the same targets "
            "at all lengths, so the difference is what more context gains"
        )
    if "sliding" in protocols:
        context = parts["sliding"].length - parts["sliding"].scored
        body.append(
            "sliding: windows advance by a stride and score only that stride, so that every token has context (at "
            f"least {context} tokens in the longest)"
        )
    return body
