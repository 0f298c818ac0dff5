"""The section of a report on runs with a first phase: what the phase reached, its course by iteration, what the second
phase made of it, and the shapes of the context/token model beside the published ones."""

from collections import Counter
from math import isfinite

import numpy as np
import pandas as pd

from newllm.analysis.published import distance, reference_table
from newllm.analysis.run_groups import Group
from newllm.analysis.scaling import Law, fit, laws
from newllm.analysis.statistics import sample_std
from newllm.report.figures import DASHED, Drawing, Panel, colour, curve, of_group, plot
from newllm.report.laws import ALPHA, exponent
from newllm.report.series import read_tables
from newllm.report.study import Part, Section, Study
from newllm.report.tables import Cell, Row, Table, number_cell, percent, spread, text_cell

_FIRST = "phase1/iterations"
_COLUMNS = {  # metric -> title and hint of its column
    "phase1/iterations": ("iterations", "passes of phase 1, the random start among them"),
    "phase1/loss": ("loss", "of the last iteration"),
    "phase1/bound": ("bound", "what the loss cannot go below with LayerNorm's first gains"),
    "phase1/converged": ("converged", "share of the contexts that the last iteration left where they were"),
    "phase1/reached": ("reached", "1 where the phase stopped by its rule, 0 where by its number of iterations"),
    "context/rank_share@train": ("rank train", "effective rank / width, of the contexts that phase 2 trains on"),
    "context/rank_share@val": ("rank val", "effective rank / width, of the true recurrence on validation text"),
    "context/parallel_cosine": ("cosine", "of contexts made in parallel with the true ones, mean"),
    "val/ppl": ("val/ppl", "lower is better"),
    "val/accuracy": ("val/accuracy", "share of the next tokens that are the likeliest"),
    "params/context_block": ("context block", "parameters trained in phase 1"),
    "params/token_block": ("token block", "parameters trained in phase 2"),
    "params/trainable": ("trainable", "in phase 2"),
    "params/total": ("total", "embeddings among them"),
    "speed/phase1_seconds": ("seconds", "of phase 1; a run that found it in the cache needed less"),
}
TOKENS, PPL, ACCURACY = "data/train_tokens", "val/ppl", "val/accuracy"


def two_phases(study: Study) -> Section:
    """The section, empty where no run has a first phase."""
    tables = [made for part in study.parts if (made := _phases(part))]
    if tables and (beside := _shapes(study)):
        tables.append(beside)
    return study.figure_section("phases", "Two phases", _course, tables=tables)


def _phases(part: Part) -> Table | None:
    """A row per group that has a first phase, without the columns that are empty in all of them."""
    there = [group for group in part.groups if isfinite(group.mean(_FIRST))]
    if not there:
        return None
    metrics = [metric for metric in _COLUMNS if any(isfinite(group.mean(metric)) for group in there)]
    rows = [
        {
            "group": text_cell(group.label, "group"),
            "seeds": number_cell(len(group.by_seed(_FIRST)), "seeds"),
            **{_COLUMNS[metric][0]: _mean(group, metric) for metric in metrics},
        }
        for group in there
    ]
    notes = [
        "Mean ± sample standard deviation over seeds. The loss is that of the last iteration, which its own step "
        "follows; a loss at its bound says that the contexts have no mean, not that they carry the text.",
        "Ranks are of noisy contexts made in parallel on the training side, of the true recurrence on the validation "
        "side.",
    ]
    return Table(f"phases{part.mark}", part.named("Two phases"), rows, notes, dict(_COLUMNS.values()))


def _mean(group: Group, metric: str) -> Cell:
    mean, std = group.mean(metric), sample_std([*group.by_seed(metric).values()])
    text = f"{mean:,.0f}" if metric.startswith("params/") else spread(mean, std) if std else None
    return number_cell(mean, f"{metric} mean", text)


def _course(part: Part) -> list[Drawing]:
    """Loss with its bound and share of converged contexts by iteration, of tables/phase1.csv."""
    columns = ("iteration", "loss", "bound", "converged")
    runs = {one: tables for one in part.drawn if (tables := read_tables(one.group, "phase1", columns))}
    if not runs:
        return []
    panels = []
    for column, title in (("loss", "Loss"), ("converged", "Converged")):
        rows = {one: [table.set_index("iteration")[column] for table in tables] for one, tables in runs.items()}
        series = [one.series(pd.DataFrame(values)) for one, values in rows.items()]
        panels.append(Panel(series, "iteration", title=title))
    figure, crosses = plot(panels), ""
    for one, tables in runs.items():
        bound = np.mean([table["bound"].iloc[-1] for table in tables])
        if np.isfinite(bound):
            line = figure.axes[0].axhline(bound, color=colour(one.index), linewidth=1, linestyle=DASHED)
            of_group(one.index, line)
        published = _published_course(one.group)
        for axes, column in zip(figure.axes, ("loss", "converged"), strict=True):
            x, y = ([float(line[name]) for line in published] for name in ("iteration", column))
            curve(axes, one.index, x, y, linestyle="", marker="x", markersize=5)
        if published:
            crosses = " Crosses are the published run of these conditions."
    figure.axes[1].set_ylim(-0.03, 1.03)
    caption = (
        "Mean over seeds; the band is ± one sample standard deviation. Dashed: the loss's bound. Converged is the "
        f"share of contexts that moved by less than the threshold since the iteration before.{crosses}"
    )
    return [part.drawing("phases", "Phase 1 by iteration", figure, caption)]


def _published_course(group: Group) -> list[dict[str, str]]:
    """The iterations of the published run with the group's conditions, where its log was published."""
    runs = {line["run"] for line in distance(group.config, {"val/best_ppl": 1.0})}
    return [line for line in reference_table("context_token_phase1") if line["run"] in runs]


def _shapes(study: Study) -> Table | None:
    """Shapes of the context/token model side by side: exponent, best perplexity, accuracy; the published ones below.

    None unless all curves of the scaling law are of such shapes, by the size of their text.
    """
    confidence = study.options.confidence
    found = laws(study.done, study.options.size, study.options.main_metric, confidence)
    if not found or any(_shape(law) is None or (law.size, law.metric) != (TOKENS, PPL) for law in found):
        return None
    times = Counter(map(_shape, found))
    rows = []
    for law in found:
        best, ppl = min(law.points, key=lambda point: point[1])
        shape = _shape(law)
        accuracy = law.at(best, ACCURACY)
        accuracy = accuracy[np.isfinite(accuracy)]
        rows.append({
            "shape": text_cell(shape if times[shape] == 1 else f"{shape} ({law.label})", "shape"),
            **exponent(law.fit),
            "best val/ppl": number_cell(ppl, "best val/ppl", spread(ppl, sample_std(law.at(best, law.metric)))),
            "best accuracy": _accuracy(float(accuracy.mean()) if len(accuracy) else np.nan),
            "at tokens": number_cell(best, "tokens"),
            "whose": text_cell("these runs", "whose"),
        })  # fmt: skip
    notes = [
        "Geometric mean over seeds at the size with the lowest perplexity, ± sample standard deviation.",
        "Published are one seed each, on UltraChat with GPT-2's embeddings and vocabulary: perplexities and exponents "
        "of another text do not compare with them.",
    ]
    rows += _published_shapes(confidence)
    hints = {"shape": "layers, context_dim, num_input_tokens"}
    return Table("scaling-shapes", "Shapes of the context/token model", rows, notes, hints)


def _shape(law: Law) -> str | None:
    """Layers, context_dim and tokens, as in 3L/1536/2tok."""
    model = law.curve.config["model"]
    names = ("layers", "context_dim", "num_input_tokens")
    return "{}L/{}/{}tok".format(*(model[name] for name in names)) if all(name in model for name in names) else None


def _published_shapes(confidence: float) -> list[Row]:
    """A row for each power law of references/scaling.csv that is of a shape, at its best point; the interval follows
    from its points, where they are published."""
    published: dict[str, list[dict[str, str]]] = {}
    for line in reference_table("scaling"):
        if line["law"] == "power" and line["context_dim"]:
            published.setdefault(line["run"], []).append(line)
    rows = []
    for lines in published.values():
        best = min(lines, key=lambda line: float(line[PPL]))
        tokens, perplexities = ([float(line[name]) for line in lines] for name in (TOKENS, PPL))
        ours = exponent(fit(tokens, perplexities, confidence))
        rows.append({
            "shape": text_cell("{layers}L/{context_dim}/{num_input_tokens}tok".format(**best), "shape"),
            **ours,
            ALPHA: number_cell(float(best["slope"]), "alpha", best["slope"]),
            "best val/ppl": number_cell(float(best[PPL]), "best val/ppl"),
            "best accuracy": _accuracy(float(best[ACCURACY])),
            "at tokens": number_cell(float(best[TOKENS]), "tokens"),
            "whose": text_cell(f"published, {best['source']}", "whose"),
        })  # fmt: skip
    return rows


def _accuracy(share: float) -> Cell:
    return number_cell(share, "best accuracy", percent(share).lstrip("+"))
