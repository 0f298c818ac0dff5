"""The report's section on runs with a first phase: its results, its iterations, shapes of the context/token model."""

from collections import Counter

import numpy as np
import pandas as pd

from newllm.analysis.published import distance, reference_table
from newllm.analysis.run_groups import Group
from newllm.analysis.scaling_laws import Law, fit, laws
from newllm.analysis.statistics import sample_std
from newllm.report.figures import DASHED, Drawing, Panel, colour, curve, of_group, plot
from newllm.report.laws import ALPHA, exponent_cells
from newllm.report.series import read_tables
from newllm.report.study import Part, Section, Study
from newllm.report.tables import Cell, Row, Table, mean_cell, number_cell, percent, spread, text_cell

_FIRST = "phase1/iterations"
_COLUMNS = {  # metric -> title and hint of its column
    "phase1/iterations": ("iterations", "passes of phase 1, including the random start"),
    "phase1/loss": ("loss", "of the last iteration"),
    "phase1/bound": ("bound", "lower bound of the loss while LayerNorm has its initial gain"),
    "phase1/converged": ("converged", "share of the contexts that the last iteration hardly changed"),
    "phase1/reached": ("reached", "1: the phase stopped by its rule; 0: at its maximum number of iterations"),
    "context/rank_share@train": ("rank train", "effective rank / width of the contexts that phase 2 trains on"),
    "context/rank_share@val": ("rank val", "effective rank / width of the true contexts of the validation text"),
    "context/parallel_cosine": ("cosine", "mean cosine of contexts computed in parallel to the true ones"),
    "val/ppl": ("val/ppl", "lower is better"),
    "val/accuracy": ("val/accuracy", "share of correct next tokens"),
    "params/context_block": ("context block", "parameters trained in phase 1"),
    "params/token_block": ("token block", "parameters trained in phase 2"),
    "params/trainable": ("trainable", "in phase 2"),
    "params/total": ("total", "with embeddings"),
    "speed/phase1_seconds": ("seconds", "of phase 1; a run that loaded it from the cache took less"),
}
TOKENS, PPL, ACCURACY = "data/train_tokens", "val/ppl", "val/accuracy"


def two_phases(study: Study) -> Section:
    """The section, empty if no run has a first phase."""
    tables = [table for part in study.parts if (table := _phase_table(part))]
    if tables and (shapes := _shape_table(study)):
        tables.append(shapes)
    return study.figure_section("phases", "Two phases", _draw_iterations, tables=tables)


def _phase_table(part: Part) -> Table | None:
    """A row per group that has a first phase, without columns that are empty in all of them."""
    groups = [group for group in part.groups if group.by_seed(_FIRST)]
    if not groups:
        return None
    metrics = [metric for metric in _COLUMNS if any(group.by_seed(metric) for group in groups)]
    rows = [
        {
            "group": text_cell(group.label, "group"),
            "seeds": number_cell(len(group.by_seed(_FIRST)), "seeds"),
            **{_COLUMNS[metric][0]: _mean(group, metric) for metric in metrics},
        }
        for group in groups
    ]
    notes = [
        "Mean ± sample standard deviation over seeds. The loss is that of the last iteration, before its optimizer "
        "step. A loss at its bound says that the mean of the contexts is zero, not that contexts describe the text.",
        "Ranks of the training text are those of noisy contexts computed in parallel; ranks of the validation text are "
        "those of the true recurrence.",
    ]
    return Table(f"phases{part.mark}", part.named("Two phases"), rows, notes, dict(_COLUMNS.values()))


def _mean(group: Group, metric: str) -> Cell:
    return mean_cell(group, metric, text=f"{group.mean(metric):,.0f}" if metric.startswith("params/") else None)


def _draw_iterations(part: Part) -> list[Drawing]:
    """Loss with its bound, and share of converged contexts, by iteration, from tables/phase1.csv."""
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
            bound_line = figure.axes[0].axhline(bound, color=colour(one.index), linewidth=1, linestyle=DASHED)
            of_group(one.index, bound_line)
        published_runs = {line.run.run for line in distance(one.group.config, {"val/best_ppl": 1.0})}
        published = [line for line in reference_table("context_token_phase1") if line["run"] in published_runs]
        for axes, column in zip(figure.axes, ("loss", "converged"), strict=True):
            x, y = ([float(line[name]) for line in published] for name in ("iteration", column))
            curve(axes, one.index, x, y, linestyle="", marker="x", markersize=5)
        if published:
            crosses = " Crosses: the published run with these settings."
    figure.axes[1].set_ylim(-0.03, 1.03)
    caption = (
        "Mean over seeds; the band is ± one sample standard deviation. Dashed: the loss's bound. Converged is the "
        f"share of contexts that moved by less than the threshold since the previous iteration.{crosses}"
    )
    return [part.drawing("phases", "Phase 1 by iteration", figure, caption)]


def _shape_table(study: Study) -> Table | None:
    """Exponent, best perplexity and accuracy of each shape of the context/token model, then of the published ones.

    None unless every scaling law is that of such a shape, with perplexity as a function of training tokens.
    """
    confidence = study.options.confidence
    shape_laws = laws(study.frame, study.options.size, study.options.main_metric, confidence)
    if not shape_laws or any(_shape(law) is None or (law.size, law.metric) != (TOKENS, PPL) for law in shape_laws):
        return None
    times = Counter(map(_shape, shape_laws))
    rows = []
    for law in shape_laws:
        size, ppl = min(law.points, key=lambda point: point[1])
        shape = _shape(law)
        accuracies = law.at(size, ACCURACY)
        accuracies = accuracies[np.isfinite(accuracies)]
        rows.append(
            _shape_row(
                shape if times[shape] == 1 else f"{shape} ({law.label})",
                exponent_cells(law.fit),
                number_cell(ppl, "best val/ppl", spread(ppl, sample_std(law.at(size, law.metric)))),
                float(accuracies.mean()) if len(accuracies) else np.nan,
                size,
                "these runs",
            )
        )
    published: dict[str, list[dict[str, str]]] = {}
    for line in reference_table("scaling"):
        if line["law"] == "power" and line["context_dim"]:
            published.setdefault(line["run"], []).append(line)
    for lines in published.values():
        best = min(lines, key=lambda line: float(line[PPL]))
        tokens, perplexities = ([float(line[name]) for line in lines] for name in (TOKENS, PPL))
        law_cells = exponent_cells(fit(tokens, perplexities, confidence))  # its interval, if all points were published
        law_cells[ALPHA] = number_cell(float(best["slope"]), "alpha", best["slope"])
        rows.append(
            _shape_row(
                "{layers}L/{context_dim}/{num_input_tokens}tok".format(**best),
                law_cells,
                number_cell(float(best[PPL]), "best val/ppl"),
                float(best[ACCURACY]),
                float(best[TOKENS]),
                f"published, {best['source']}",
            )
        )
    notes = [
        "Geometric mean over seeds at the size with the lowest perplexity, ± sample standard deviation.",
        "Published are one seed each, on UltraChat with GPT-2's embeddings and vocabulary: perplexities and exponents "
        "of another text are not comparable with them.",
    ]
    hints = {"shape": "layers, context_dim, num_input_tokens"}
    return Table("scaling-shapes", "Shapes of the context/token model", rows, notes, hints)


def _shape(law: Law) -> str | None:
    """Layers, context_dim and tokens, as in 3L/1536/2tok."""
    model = law.curve.config["model"]
    names = ("layers", "context_dim", "num_input_tokens")
    return "{}L/{}/{}tok".format(*(model[name] for name in names)) if all(name in model for name in names) else None


def _shape_row(
    shape: str | None, law: dict[str, Cell], best_ppl: Cell, accuracy: float, tokens: float, whose: str
) -> Row:
    return {
        "shape": text_cell(shape, "shape"),
        **law,
        "best val/ppl": best_ppl,
        "best accuracy": number_cell(accuracy, "best accuracy", percent(accuracy).lstrip("+")),
        "at tokens": number_cell(tokens, "tokens"),
        "whose": text_cell(whose, "whose"),
    }
