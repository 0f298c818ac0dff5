"""Lines with bands over seeds: learning curves, perplexity by position, queries and keys by layer."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from newllm.report.figures import Drawing, drawing, lines
from newllm.report.series import BAND, GEOMETRIC, Series, at_number, of_drawn, of_runs, over_number, stacked, table_of
from newllm.report.study import Part

MOST_POINTS = 200  # of one drawn curve
_TITLES = {"q": "Queries", "k": "Keys", "high": "High frequencies", "low": "Low frequencies",
           "pass-through": "Not rotated"}  # fmt: skip


def learning(part: Part) -> list[Drawing]:
    """Perplexity over training tokens, of training and of validation."""
    panels: dict[str, list[Series]] = {"Training": [], "Validation": []}
    for one in part.drawn:
        runs = of_runs(one.group, _losses)
        for side, title in enumerate(panels):
            curves = [run[side] for run in runs if len(run[side])]
            if curves:
                x = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
                if len(x) > MOST_POINTS:
                    x = x[np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int)]
                rows = [np.interp(x, curve[:, 0], curve[:, 1], left=np.nan, right=np.nan) for curve in curves]
                panels[title].append(of_drawn(one, x, np.exp(rows), log=True))
    there = {title: series for title, series in panels.items() if series}
    if not there:
        return []
    figure = lines(there, "training tokens", "perplexity", log_y=True)
    return [drawing(f"curves{part.mark}", part.named("Learning curves"), figure, GEOMETRIC)]


def _losses(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Of metrics.jsonl, [points, 2] of tokens and loss: training by logged step, validation by epoch."""
    with (path / "metrics.jsonl").open(encoding="utf-8") as file:
        logged = [json.loads(line) for line in file]
    steps = [line for line in logged if "epoch" not in line and line.get("train/loss") is not None]
    epochs = [line for line in logged if "epoch" in line and line.get("val/loss") is not None]
    per_step = next((line["train/tokens"] / line["step"] for line in reversed(steps) if "train/tokens" in line), None)
    if per_step is None:
        return None
    train = [(line["step"] * per_step, line["train/loss"]) for line in steps]
    val = [(line.get("train/tokens", line["step"] * per_step), line["val/loss"]) for line in epochs]
    return np.array(train, dtype=float).reshape(-1, 2), np.array(val, dtype=float).reshape(-1, 2)


def by_position(part: Part) -> list[Drawing]:
    """`val/ppl_by_position/A-B` over the middle of A and B."""
    at = at_number(part, r"val/ppl_by_position/(\d+)-(\d+)", lambda a, b: (float(a) + float(b)) / 2)
    series = over_number(part.drawn, at, log=True)
    if not series:
        return []
    figure = lines({"": series}, "position of the label", "perplexity", log_y=True, dots=True)
    return [drawing(f"position{part.mark}", part.named("Perplexity by position in the row"), figure, GEOMETRIC)]


def sizes(part: Part) -> list[Drawing]:
    """Largest query and key by layer, after rotation, of tables/qk_layers.csv."""

    def read(path: Path) -> dict[str, dict[float, float]]:
        rows = table_of(path, "qk_layers")
        return {name: {float(row["layer"]): float(row[f"{name}_max"]) for row in rows} for name in ("q", "k")}

    return _by_layer(part, "qk", "Largest query and key by layer", read, ("q", "k"))


def bands(part: Part) -> list[Drawing]:
    """Largest norm of a rotary pair by frequency band and layer, of tables/qk_bands.csv; nothing without rotation."""

    def read(path: Path, tensor: str) -> dict[str, dict[float, float]]:
        found: dict[str, dict[float, float]] = {}
        for row in table_of(path, "qk_bands"):
            if row["cut"] == "frequency" and row["tensor"] == tensor:
                found.setdefault(row["band"], {})[float(row["layer"])] = float(row["max"])
        return found if "high" in found else {}

    bands = ("high", "low", "pass-through")
    return [
        made
        for name in ("q", "k")
        for made in _by_layer(part, f"qk-bands-{name}", f"{_TITLES[name]} by frequency band and layer",
                              partial(read, tensor=name), bands)
    ]  # fmt: skip


def _by_layer(
    part: Part, name: str, title: str, read: Callable[[Path], Mapping[str, Any]], panels: Sequence[str]
) -> list[Drawing]:
    """What `read` finds in each run: panel -> layer -> value."""
    drawn: dict[str, list[Series]] = {_TITLES[panel]: [] for panel in panels}
    for one in part.drawn:
        runs = of_runs(one.group, read)
        for panel in panels:
            if rows := [run[panel] for run in runs if run.get(panel)]:
                drawn[_TITLES[panel]].append(of_drawn(one, *stacked(rows)))
    there = {panel: series for panel, series in drawn.items() if series}
    if not there:
        return []
    figure = lines(there, "layer", "largest size", dots=True, whole_x=True)
    return [drawing(f"{name}{part.mark}", part.named(title), figure, BAND)]
