"""What a user sees of the fixed-point iteration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEADING = f"{'iteration':>9}  {'loss':>9}  {'bound':>9}  {'of bound':>8}  {'converged':>9}  {'time':>7}"


def iteration_line(lines: Sequence[Mapping[str, Any]], clock: bool = True) -> str:
    """The last of the lines of metrics.jsonl, for reading. clock: with its time."""
    line = lines[-1]
    loss, bound = line["phase1/loss"], line["phase1/bound"]
    seconds = f"{_seconds(lines):.1f} s" if clock else ""
    share = f"{loss / bound:.0%}" if bound and loss < 0 else ""  # the first losses are above 0
    shown = f"{line['iteration']:>9}  {loss:>9.4f}  {bound:>9.4f}  {share:>8}  {line['phase1/converged']:>9.0%}"
    return f"{shown}  {seconds:>7}".rstrip()


def stored(side: str, shape: tuple[int, int, int], path: Path, seconds: float) -> str:
    text = {"train": "training", "val": "validation"}[side]
    size = path.stat().st_size / 2**20
    what = f"{shape[0]:,} tokens, {shape[1]} layers, {shape[2]:,} wide"
    return f"Contexts of the {text} text stored: {what}; {size:,.1f} MiB, {seconds:.1f} s."


def table(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of tables/phase1.csv, one an iteration."""
    return [
        {
            "iteration": line["iteration"],
            "loss": line["phase1/loss"],
            "bound": line["phase1/bound"],
            "converged": line["phase1/converged"],
            "seconds": _seconds(lines[: number + 1]),
        }
        for number, line in enumerate(lines)
    ]


def summary(metrics: Mapping[str, float], tokens: int, width: int, folder: Path) -> list[str]:
    """The console section when all is done."""
    reached = "reached its fixed point" if metrics["phase1/reached"] else "stopped without a fixed point"
    rank = metrics["context/rank@train"]
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    return [
        f"Phase 1 {reached}: {metrics['phase1/converged']:.1%} of {tokens:,} contexts converged after "
        f"{metrics['phase1/iterations']:.0f} iterations ({metrics['phase1/steps']:,.0f} steps of the optimizer).",
        f"Effective rank of the training contexts: {rank:,.1f} of {width:,} dims, {rank / width:.1%} (as the last "
        f"iteration left them, its noise included; {min(tokens, 10_000):,} of them, not centred).",
        f"On disk: {size:,.1f} MiB in {folder}.",
    ]


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """What the last of these iterations took."""
    before = lines[-2]["time/seconds"] if len(lines) > 1 else 0.0
    return float(lines[-1]["time/seconds"] - before)
