"""Retrieval: accuracy at each depth and length as heat maps, and over the length and the distance."""

import numpy as np

from newllm.report.curves import BAND
from newllm.report.drawing import Drawing, drawing
from newllm.report.figures.heat import Heat, heat
from newllm.report.figures.lines import lines
from newllm.report.length_figures import TRAINED, trained_length
from newllm.report.numbered import at_number, over_number
from newllm.report.reading import of_runs, table
from newllm.report.study import Part

CHANCE = 0.5  # of the true key against one wrong key

Cells = dict[tuple[float, float], tuple[float, float]]  # (depth, length) -> accuracy, trials


def depth_by_length(part: Part) -> list[Drawing]:
    """A map of the passkey's accuracy for each group, of tables/passkey.csv; mean over seeds."""
    maps, trials = [], set()
    for one in part.drawn:
        runs: list[Cells] = of_runs(one.group, lambda path: _cells(table(path, "passkey")))
        places = sorted({place for run in runs for place in run})
        if not places:
            continue
        depths, lengths = sorted({depth for depth, _ in places}), sorted({length for _, length in places})
        values = np.full((len(depths), len(lengths)), np.nan)
        for depth, length in places:
            known = [run[depth, length][0] for run in runs if (depth, length) in run]
            values[depths.index(depth), lengths.index(length)] = np.mean(known)
        trials |= {cell[1] for run in runs for cell in run.values()}
        maps.append(Heat(one.index, one.group.label, lengths, depths, values))
    if not maps:
        return []
    figure = heat(maps, "tokens of context", "depth of the key", CHANCE)
    caption = (
        "Share of trials, in percent, in which the true key is likelier than one that is wrong in every digit; mean "
        f"over seeds. Chance is {100 * CHANCE:.0f} %, the pale colour."
    )
    if trials:
        reach = 196 * (CHANCE * (1 - CHANCE) / min(trials)) ** 0.5
        caption += (
            f" A cell of one run has {_range(trials)} trials: guessing alone gives 50 ± {min(50, reach):.0f} in "
            "nineteen runs of twenty. Depth 0 % is the beginning of the context."
        )
    return [drawing(f"passkey-depth{part.mark}", part.named("Passkey by depth and length"), figure, caption)]


def passkey(part: Part) -> list[Drawing]:
    """Accuracy, margin and exact matches over the length."""
    return _curves(part, "passkey", "Passkey by length of the context", "tokens of context")


def distance(part: Part) -> list[Drawing]:
    """The same over the distance between key and question, in rows of one length."""
    return _curves(part, "distance", "Retrieval by distance", "tokens between key and question")


def _curves(part: Part, name: str, title: str, x: str) -> list[Drawing]:
    panels, chance = {}, {}
    for measure, words, by_chance in (
        ("accuracy", "Accuracy", CHANCE),
        ("margin", "Margin, nats", 0.0),
        ("exact", "Exact match", None),
    ):
        at = at_number(part, rf"{name}/{measure}@(\d+)")
        if len(at) > 1 and (series := over_number(part.drawn, at, log=False)):
            panels[words] = series
            if by_chance is not None:
                chance[words] = by_chance
    if not panels:
        return []
    trained = trained_length(part)
    figure = lines(panels, x, "", log_x=True, dots=True, marked_x=trained, marked_y=chance)
    caption = f"{BAND} Dashed across: chance, where the true key is no likelier than a wrong one."
    caption += f" Dashed upright: {TRAINED.removeprefix('The dashed line is ')}" if trained else ""
    return [drawing(f"{name}{part.mark}", part.named(title), figure, caption)]


def _cells(rows: list[dict[str, str]]) -> Cells | None:
    known = [row for row in rows if row["accuracy"]]
    return {
        (float(row["depth"]), float(row["length"])): (float(row["accuracy"]), float(row["trials"])) for row in known
    } or None


def _range(numbers: set[float]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
