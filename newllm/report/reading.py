"""What figures need of run directories beyond the table of runs: metrics.jsonl and tables/*.csv, of drawn runs only."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from newllm.analysis.groups import Group

MOST_SEEDS = 24  # runs of one group whose files are read
MOST_POINTS = 200  # points of one drawn curve

Content = TypeVar("Content")


@dataclass(frozen=True)
class Course:
    """Losses over training tokens: of training by logged step, of validation by epoch; nats per token."""

    train: np.ndarray  # [points, 2]: tokens, loss
    val: np.ndarray


def of_runs(group: Group, read: Callable[[Path], Content | None]) -> list[Content]:
    """What `read` finds in the group's runs, the first of them; a run whose file is missing or broken is left out."""
    found = []
    for path in list(group.runs["path"])[:MOST_SEEDS]:
        try:
            content = read(Path(path))
        except (OSError, ValueError, KeyError):
            continue
        if content is not None:
            found.append(content)
    return found


def course(path: Path) -> Course | None:
    """The losses in metrics.jsonl; None where there are none."""
    with (path / "metrics.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "epoch" not in line and line.get("train/loss") is not None]
    epochs = [line for line in lines if "epoch" in line and line.get("val/loss") is not None]
    per_step = next((line["train/tokens"] / line["step"] for line in reversed(steps) if "train/tokens" in line), None)
    if per_step is None:
        return None
    train = [(line["step"] * per_step, line["train/loss"]) for line in steps]
    val = [(line.get("train/tokens", line["step"] * per_step), line["val/loss"]) for line in epochs]
    return Course(np.array(train, dtype=float).reshape(-1, 2), np.array(val, dtype=float).reshape(-1, 2))


def table(path: Path, name: str) -> list[dict[str, str]]:
    with (path / "tables" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def together(curves: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Curves [points, 2] on one x: its values and rows [curves, points]; NaN beyond a curve's own ends."""
    curves = [curve for curve in curves if len(curve)]
    if not curves:
        return np.empty(0), np.empty((0, 0))
    x = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    if len(x) > MOST_POINTS:
        x = x[np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int)]
    rows = [np.interp(x, curve[:, 0], curve[:, 1], left=np.nan, right=np.nan) for curve in curves]
    return x, np.array(rows)


def stacked(rows: Sequence[Mapping[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Mappings x -> value of several runs as x and rows [runs, points], NaN where a run lacks a point."""
    x = sorted({at for row in rows for at in row})
    return np.array(x, dtype=float), np.array([[row.get(at, np.nan) for at in x] for row in rows], dtype=float)
