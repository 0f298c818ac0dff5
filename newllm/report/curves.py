"""Learning curves, perplexity by position, queries and keys by layer: lines with bands over seeds."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from newllm.report.drawing import Drawing, drawing
from newllm.report.figures.lines import lines
from newllm.report.figures.series import Series, over_seeds
from newllm.report.numbered import at_number, over_number
from newllm.report.reading import course, of_runs, stacked, table, together
from newllm.report.study import Part

BAND = "Mean over seeds; the band is ± one sample standard deviation."
GEOMETRIC = "Geometric mean over seeds; the band is ± one sample standard deviation of ln perplexity."


def learning(part: Part) -> list[Drawing]:
    """Perplexity over training tokens, of training and of validation."""
    panels: dict[str, list[Series]] = {"Training": [], "Validation": []}
    for one in part.drawn:
        courses = of_runs(one.group, course)
        for title, curves in (("Training", [c.train for c in courses]), ("Validation", [c.val for c in courses])):
            x, losses = together(curves)
            if len(x):
                panels[title].append(over_seeds(one.index, one.group.label, x, np.exp(losses), log=True))
    there = {title: series for title, series in panels.items() if series}
    if not there:
        return []
    figure = lines(there, "training tokens", "perplexity", log_y=True)
    return [drawing(f"curves{part.mark}", part.named("Learning curves"), figure, GEOMETRIC)]


def by_position(part: Part) -> list[Drawing]:
    """`val/ppl_by_position/A-B` over the middle of A and B."""
    at = at_number(part, r"val/ppl_by_position/(\d+)-(\d+)", lambda a, b: (float(a) + float(b)) / 2)
    series = over_number(part.drawn, at, log=True) if len(at) > 1 else []
    if not series:
        return []
    figure = lines({"": series}, "position of the label", "perplexity", log_y=True, dots=True)
    return [drawing(f"position{part.mark}", part.named("Perplexity by position in the row"), figure, GEOMETRIC)]


def queries_and_keys(part: Part) -> list[Drawing]:
    """Largest query and key by layer; the same by frequency band."""
    made = _by_layer(part, f"qk{part.mark}", part.named("Largest query and key by layer"), _sizes, ("q", "k"))
    for name, title in (("q", "Queries"), ("k", "Keys")):
        named = part.named(f"{title} by frequency band and layer")
        read = partial(_bands, tensor=name)
        made += _by_layer(part, f"qk-bands-{name}{part.mark}", named, read, ("high", "low", "pass-through"))
    return made


_TITLES = {"q": "Queries", "k": "Keys", "high": "High frequencies", "low": "Low frequencies",
           "pass-through": "Not rotated"}  # fmt: skip


def _by_layer(
    part: Part, name: str, title: str, read: Callable[[Path], Mapping[str, Any]], panels: Sequence[str]
) -> list[Drawing]:
    drawn: dict[str, list[Series]] = {panel: [] for panel in panels}
    for one in part.drawn:
        runs = of_runs(one.group, read)
        for panel in panels:
            rows = [run[panel] for run in runs if run.get(panel)]
            if rows:
                drawn[panel].append(over_seeds(one.index, one.group.label, *stacked(rows)))
    there = {_TITLES[panel]: series for panel, series in drawn.items() if series}
    if not there:
        return []
    figure = lines(there, "layer", "largest size", dots=True, whole_x=True)
    return [drawing(name, title, figure, BAND)]


def _sizes(path: Path) -> dict[str, dict[float, float]]:
    """Panel -> layer -> largest size after rotation, of tables/qk_layers.csv."""
    rows = table(path, "qk_layers")
    return {name: {float(row["layer"]): float(row[f"{name}_max"]) for row in rows} for name in ("q", "k")}


def _bands(path: Path, tensor: str) -> dict[str, dict[float, float]]:
    """Band -> layer -> largest norm of a rotary pair, of tables/qk_bands.csv; without rotation there are no bands."""
    found: dict[str, dict[float, float]] = {}
    for row in table(path, "qk_bands"):
        if row["cut"] == "frequency" and row["tensor"] == tensor:
            found.setdefault(row["band"], {})[float(row["layer"])] = float(row["max"])
    return found if "high" in found else {}
