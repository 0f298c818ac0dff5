"""The console section: a line per length, and what each number means."""

from typing import Any

from newllm.evaluation.extrapolation.measure import Measured
from newllm.evaluation.subject import Subject, Table


def body(shown: list[Measured], failures: list[str], bins: Table, subject: Subject) -> list[str | Table]:
    """shown: the protocols that are reported; bins: tables/extrapolation_positions.csv."""
    lines: list[str | Table] = []
    if shown:
        lines += [_rows(shown, subject), *_meanings(shown)]
    if bins:
        longest = max(row["length"] for row in bins)
        columns = ("from", "to", "loss", "se", "ppl")
        lines += [
            f"Loss by tokens of context (from ≤ t < to) in the slices of {longest:,} tokens; se over windows",
            [{column: row[column] for column in columns} for row in bins if row["length"] == longest],
        ]
    lines += [f"FAILED: {failure}" for failure in failures]
    lines.append("Perplexity hides much of long-context failure, since most tokens need near context only")
    return lines


def _rows(shown: list[Measured], subject: Subject) -> Table:
    """A line per length: its perplexities by protocol, the rest of the first of them."""
    rows: Table = []
    for length in sorted({one.part.windows.length for one in shown}):
        here = [one for one in shown if one.part.windows.length == length]
        row: dict[str, Any] = {"tokens": length, "trained": f"{length / subject.model.seq_len:g}x"}
        ppl = {one.part.protocol: one.ppl for one in here if not one.failed}
        row |= {protocol: ppl.get(protocol) for protocol in dict.fromkeys(one.part.protocol for one in shown)}
        for one in [one for one in here if not one.failed][:1]:
            row["windows"] = len(one.part.windows)
            row["bits per byte"] = one.numbers["bits_per_byte"]
            row["verdict"] = subject.diagnose(one.ppl, one.numbers["bytes"] / one.numbers["tokens"])
        row["seconds"] = sum(one.seconds for one in here)
        rows.append(row)
    return rows


def _meanings(shown: list[Measured]) -> list[str]:
    by_protocol = {one.part.protocol: one.part.windows for one in shown}
    told = []
    if "slices" in by_protocol:
        told.append(
            "slices: rows that follow one another, each read by itself, as published; each length scores other text, "
            "so they rank models at one length"
        )
    if "tail" in by_protocol:
        tail = by_protocol["tail"]
        told.append(
            f"tail: the last {tail.scored} tokens of windows that end at the same {len(tail)} places: the same targets "
            "at all lengths, so the difference is what more context gives"
        )
    if "sliding" in by_protocol:
        longest = by_protocol["sliding"]
        told.append(
            "sliding: windows move on by a stride and score only that, so that every token has context "
            f"({longest.length - longest.scored} tokens at least in the longest)"
        )
    return told
