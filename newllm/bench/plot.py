"""Tokens per second against the length of the context, as a figure."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREFIX = "decode/tokens_per_second/"  # contestant/context


def series(metrics: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """(context, tokens per second) of each contestant, shortest context first."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for name, value in metrics.items():
        contestant, _, context = name.removeprefix(PREFIX).rpartition("/")
        if name.startswith(PREFIX) and context.isdigit():
            found[contestant].append((int(context), float(value)))
    return {contestant: sorted(points) for contestant, points in found.items()}


def decoding(metrics: Mapping[str, Any], file: Path) -> None:
    """Write the figure as a PNG, the same bytes for the same numbers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lengths: set[int] = set()
    for contestant, points in series(metrics).items():
        contexts, speeds = zip(*points, strict=True)
        axes.plot(contexts, speeds, marker="o", label=contestant)
        lengths |= set(contexts)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(lengths), [str(length) for length in sorted(lengths)])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in the cache")
    axes.set_ylabel("tokens per second")
    axes.grid(alpha=0.3)
    if lengths:
        axes.legend(frameon=False)
    figure.savefig(file, dpi=120, metadata={"Software": None})
