"""Lines with bands over seeds: learning curves, perplexity by position, queries and keys by layer."""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import pandas as pd

from newllm.report.figures import Drawing, Panel
from newllm.report.series import BAND, GEOMETRIC, numbered_metrics, over_numbers, read_runs, read_tables
from newllm.report.study import DrawnGroup, Part
from newllm.store.run_directory import RunDirectory

MOST_POINTS = 200  # of one learning curve
_QK_LAYERS = ("qk_layers", ("layer", "q_max", "k_max"), "qk/q_max")
_QK_BANDS = ("qk_bands", ("layer", "tensor", "cut", "band", "max"), "qk/q_max")
_BANDS = {"high": "High frequencies", "low": "Low frequencies", "pass-through": "Not rotated"}


def learning_curves(part: Part) -> list[Drawing]:
    """Perplexity over training tokens, of training and of validation."""
    panels = []
    for title in ("Training", "Validation"):
        all_series = []
        for drawn in part.drawn:
            losses = [curve for run in read_runs(drawn.group, _losses) if len(curve := run[title])]
            if losses:
                table = pd.concat(losses, axis=1).sort_index().interpolate(method="index", limit_area="inside")
                kept = np.linspace(0, len(table) - 1, min(len(table), MOST_POINTS)).round().astype(int)
                all_series.append(drawn.series(np.exp(table.iloc[kept].T), log=True))
        panels.append(Panel(all_series, "training tokens", "perplexity", title, log_y=True))
    return part.figure("curves", "Learning curves", panels, GEOMETRIC)


def _losses(run: RunDirectory) -> dict[str, pd.Series]:
    """The losses in metrics.jsonl over tokens: of training by logged step, of validation by epoch."""
    log = pd.read_json(BytesIO(run.written("metrics.jsonl") or b""), lines=True)
    log = log.reindex(columns=["train/tokens", "epoch", "train/loss", "val/loss"])
    steps, epochs = log[log["epoch"].isna()], log[log["epoch"].notna()]
    losses = {"Training": (steps, "train/loss"), "Validation": (epochs, "val/loss")}
    return {
        title: lines.dropna(subset=loss).groupby("train/tokens")[loss].last() for title, (lines, loss) in losses.items()
    }


def by_position(part: Part) -> list[Drawing]:
    """`val/ppl_by_position/A-B` over the middle of A and B."""
    pattern = r"val/ppl_by_position/(\d+)-(\d+)"
    metrics = numbered_metrics(part, pattern, lambda begin, end: (float(begin) + float(end)) / 2)
    panel = Panel(over_numbers(part.drawn, metrics, log=True), "position of the label", "perplexity", log_y=True)
    return part.figure("position", "Perplexity by position in the row", [panel], GEOMETRIC)


def queries_and_keys(part: Part) -> list[Drawing]:
    """The largest queries and keys after rotation, and the largest norms of rotary pairs by frequency band."""

    def sizes(table: pd.DataFrame) -> pd.DataFrame:
        return table.set_index("layer").rename(columns={"q_max": "Queries", "k_max": "Keys"})

    def bands(table: pd.DataFrame, tensor: str) -> pd.DataFrame:
        rows = table[(table["cut"] == "frequency") & (table["tensor"] == tensor)]
        norms = rows.pivot(index="layer", columns="band", values="max")
        return norms.rename(columns=_BANDS) if "high" in norms else norms[[]]  # without rotation there are no bands

    layers = {drawn: [sizes(table) for table in read_tables(drawn.group, *_QK_LAYERS)] for drawn in part.drawn}
    drawings = _by_layer(part, "qk", "Largest query and key by layer", layers, ["Queries", "Keys"])
    tables = {drawn: read_tables(drawn.group, *_QK_BANDS) for drawn in part.drawn}
    for tensor, title in (("q", "Queries"), ("k", "Keys")):
        layers = {drawn: [bands(table, tensor) for table in group_tables] for drawn, group_tables in tables.items()}
        name, title = f"qk-bands-{tensor}", f"{title} by frequency band and layer"
        drawings += _by_layer(part, name, title, layers, list(_BANDS.values()))
    return drawings


def _by_layer(
    part: Part, name: str, title: str, layers: Mapping[DrawnGroup, list[pd.DataFrame]], columns: Sequence[str]
) -> list[Drawing]:
    """A panel for each column of the groups' tables, which have a row per layer."""
    panels = []
    for column in columns:
        curves = {drawn: [table[column] for table in tables if column in table] for drawn, tables in layers.items()}
        series = [drawn.series(pd.DataFrame(rows)) for drawn, rows in curves.items() if rows]
        panels.append(Panel(series, "layer", "largest size", column))
    return part.figure(name, title, panels, BAND)
