"""Shapes of the context/token model side by side: exponent, best perplexity, accuracy; the published ones below."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from newllm.analysis.published import reference_table
from newllm.analysis.scaling import Fit, Law, fit
from newllm.analysis.statistics import sample_std
from newllm.report.table import ABSENT, Cell, Column, Table, figure, percent, spread, words

ALPHA = "\u03b1"
TOKENS, PPL, ACCURACY = "data/train_tokens", "val/ppl", "val/accuracy"


def shapes(found: Sequence[Law]) -> Table | None:
    """Shapes of the context/token model, ours and the published ones; None where that is not what these runs are."""
    if any(_shape(law) is None or (law.size, law.metric) != (TOKENS, PPL) for law in found):
        return None
    times = Counter(_shape(law) for law in found)
    confidence = found[0].fit.confidence
    columns = [
        Column("shape", hint="layers, context_dim, num_input_tokens"),
        Column(ALPHA, numeric=True),
        Column(f"{confidence:.0%} interval", numeric=True),
        Column("best val/ppl", numeric=True),
        Column("best accuracy", numeric=True),
        Column("at tokens", numeric=True),
        Column("whose"),
    ]
    rows = []
    for law in found:
        best, ppl = min(law.points, key=lambda point: point[1])
        shape = _shape(law)
        deviation = sample_std(law.at(best, law.metric))
        accuracy = law.at(best, ACCURACY)
        accuracy = accuracy[np.isfinite(accuracy)]
        mean = float(accuracy.mean()) if len(accuracy) else np.nan
        rows.append([
            words(shape if times[shape] == 1 else f"{shape} ({law.label})", "shape"),
            figure(law.fit.slope, "alpha", f"{law.fit.slope:.4f}"),
            interval(law.fit),
            figure(ppl, "best val/ppl", spread(ppl, deviation)),
            figure(mean, "best accuracy", _share(mean)),
            figure(best, "tokens"),
            words("these runs", "whose"),
        ])  # fmt: skip
    notes = [
        "Geometric mean over seeds at the size with the lowest perplexity, ± sample standard deviation.",
        "Published are one seed each, on UltraChat with GPT-2's embeddings and vocabulary: perplexities and exponents "
        "of another text do not compare with them.",
    ]
    rows += _published(confidence)
    return Table("scaling-shapes", "Shapes of the context/token model", columns, rows, notes)


def _shape(law: Law) -> str | None:
    """Layers, context_dim and tokens, as in 3L/1536/2tok."""
    model = law.curve.config["model"]
    names = ("layers", "context_dim", "num_input_tokens")
    return "{}L/{}/{}tok".format(*(model[name] for name in names)) if all(name in model for name in names) else None


def _published(confidence: float) -> list[list[Cell]]:
    """A row for each power law of references/scaling.csv that is of a shape, at its best point; the interval follows
    from its points, where they are published."""
    laws: dict[str, list[dict[str, str]]] = {}
    for line in reference_table("scaling"):
        if line["law"] == "power" and line["context_dim"]:
            laws.setdefault(line["run"], []).append(line)
    rows = []
    for lines in laws.values():
        best = min(lines, key=lambda line: float(line[PPL]))
        tokens, perplexities = ([float(line[name]) for line in lines] for name in (TOKENS, PPL))
        fitted = fit(tokens, perplexities, confidence)
        rows.append([
            words("{layers}L/{context_dim}/{num_input_tokens}tok".format(**best), "shape"),
            figure(float(best["slope"]), "alpha", best["slope"]),
            interval(fitted),
            figure(float(best[PPL]), "best val/ppl"),
            figure(float(best[ACCURACY]), "best accuracy", _share(float(best[ACCURACY]))),
            figure(float(best[TOKENS]), "tokens"),
            words(f"published, {best['source']}", "whose"),
        ])  # fmt: skip
    return rows


def _share(value: float) -> str:
    return percent(value).lstrip("+")


def interval(fitted: Fit) -> Cell:
    """Of the exponent."""
    if not np.isfinite(fitted.low):
        return Cell(ABSENT, None, {"low": "", "high": ""}, kind="muted")
    return Cell(f"[{fitted.low:.4f}, {fitted.high:.4f}]", None, {"low": fitted.low, "high": fitted.high})
