"""Long context: what each group reaches at each length, which differences are real, retrieval, spectra."""

from math import ceil, isfinite
from pathlib import Path

import numpy as np

from newllm.analysis.comparison import Comparison
from newllm.analysis.run_groups import Group
from newllm.report import figures
from newllm.report.figures import Drawing, drawing, lines
from newllm.report.result_tables import comparison_table, verdict_kind
from newllm.report.series import BAND, GEOMETRIC, At, at_number, of_drawn, of_runs, over_number, stacked, table_of
from newllm.report.study import Part, Section, Study
from newllm.report.tables import PLUS_MINUS, Cell, Table, mean_cell, number_cell, text_cell
from newllm.report.wavelengths import wavelengths

SLICES, TAIL, WINDOW = (rf"extrapolation/{name}@(\d+)" for name in ("ppl", "tail_ppl", "sliding_ppl"))
PROTOCOLS = {"Sequential slices": SLICES, "Same last tokens": TAIL, "Sliding window": WINDOW}
RULER = r"ruler/[\w-]+@(\d+)"
CHANCE = 0.5  # of the true key against one wrong key
TRAINED = "The dashed line is the training length."

# Metric -> title of its table, and what its numbers mean.
_TITLES = {
    "extrapolation/ppl": ("Perplexity by length: sequential slices",
                          "Each length scores another stretch of text: compare groups within a column, not columns."),
    "extrapolation/tail_ppl": ("Perplexity by length: the same last tokens",
                               "All lengths score the same tokens, with more and more text before them."),
    "extrapolation/sliding_ppl": ("Perplexity by length: sliding window",
                                  "Each window scores its last stride only, with much text before every token."),
    "passkey/accuracy": ("Passkey by length: accuracy", "Chance is 0.5."),
    "distance/accuracy": ("Retrieval by distance: accuracy", "Chance is 0.5."),
}  # fmt: skip
# Metrics that are judged together: Holm's correction runs over all comparisons of a line.
_FAMILIES = ((SLICES, TAIL, WINDOW), (r"passkey/accuracy@(\d+)",), (r"distance/accuracy@(\d+)",), (RULER,))

Cells = dict[tuple[float, float], tuple[float, float]]  # (depth, length) -> accuracy, trials


def by_length(study: Study) -> Section:
    """A table per measure, groups by lengths, with the verdict against the baseline; the ruler; the figures."""
    tables = []
    for part in study.parts:
        for found in _families(part):
            judged = part.compare([metric for at in found for _, metric in at])
            for at in found:
                if at and (name := at[0][1].rpartition("@")[0]) in _TITLES:
                    tables.append(_by_length(part, name, at, judged))
        tables += _ruler(part)
    drawings = study.draw(_curves, _by_position, _spectra, _passkey, _maps, _distance)
    return Section("length", "Long context", study.left_out if drawings else (), tables, drawings)


def comparisons(study: Study) -> Section:
    """All comparisons at all lengths in full."""
    tables = []
    for part in study.parts:
        families = [[metric for at in found for _, metric in at] for found in _families(part)]
        if found := [one for metrics in families for one in part.compare(metrics)]:
            title = part.named(f"Comparisons with {found[0].baseline} at each length")
            together = "Perplexities are corrected together, passkey, distance and ruler each by themselves."
            notes = [study.options.rule.words, together]
            tables.append(comparison_table(f"length-comparisons{part.mark}", title, part, found, notes))
    return Section("length-comparisons", "Long context: all comparisons", (), tables)


def _families(part: Part) -> list[list[At]]:
    return [[at_number(part, pattern) for pattern in family] for family in _FAMILIES]


def _by_length(part: Part, name: str, at: At, judged: list[Comparison]) -> Table:
    title, meaning = _TITLES[name]
    compared = {(one.candidate, one.metric): one for one in judged}
    rows = []
    for group in part.groups:
        cells = {f"{n:,.0f}": _at_length(group, metric, compared.get((group.label, metric))) for n, metric in at}
        if any(cell.value is not None for cell in cells.values()):
            rows.append({"group": text_cell(group.label, "group"), **cells})
    notes = [meaning]
    if part.baseline:
        notes.append(
            f"The baseline {part.baseline.label} with its mean ± sample standard deviation; the others with their "
            f"difference to it and its {part.options.confidence:.0%} interval, paired by seed. "
            f"Holm's correction is over {len(judged)} comparisons."
        )
    hints = {f"{number:,.0f}": metric for number, metric in at}
    return Table(f"{name.replace('/', '-')}{part.mark}", part.named(title), rows, notes, hints)


def _at_length(group: Group, metric: str, one: Comparison | None) -> Cell:
    """The difference to the baseline with its verdict; the mean of the baseline, and where nothing is compared."""
    mean = mean_cell(group, metric)
    if one is None:
        return mean

    def said(value: float) -> str:
        return f"{100 * value:+.1f}" if one.scale == "log" else f"{value:+.3f}"

    verdict = f" {one.verdict}" if one.verdict not in ("not shown", "one seed") else ""
    interval = f" [{said(one.low)}, {said(one.high)}]" if isfinite(one.low) else ""
    text = f"{said(one.difference)}{' %' if one.scale == 'log' else ''}{interval}{verdict}"
    exact = {**mean.exact, f"{metric} difference": one.difference, f"{metric} low": one.low,
             f"{metric} high": one.high, f"{metric} p holm": one.p_holm, f"{metric} verdict": one.verdict}  # fmt: skip
    return Cell(text, mean.value, exact, kind=verdict_kind(one), hint=f"{mean.text}; {one.why}")


def _ruler(part: Part) -> list[Table]:
    """Accuracy of each group and task at each length, with the task's chance."""
    found = at_number(part, RULER)
    lengths = sorted({length for length, _ in found})
    tables = (table for group in part.groups for table in of_runs(group, lambda path: table_of(path, "ruler")))
    chance = {row["task"]: float(row["chance"]) for row in next(tables, [])} if found else {}
    rows = []
    for task in dict.fromkeys(metric.removeprefix("ruler/").rpartition("@")[0] for _, metric in found):
        for group in part.groups:
            cells = {f"{length:,.0f}": mean_cell(group, f"ruler/{task}@{length:.0f}") for length in lengths}
            if any(cell.value is not None for cell in cells.values()):
                known = chance.get(task)
                shown = number_cell(known, "chance", None if known is None else f"{known:.3g}")
                named = {"group": text_cell(group.label, "group"), "task": text_cell(task, "task"), "chance": shown}
                rows.append({**named, **cells})
    note = f"Share of trials in which the right candidate is the likeliest; {PLUS_MINUS.lower()}."
    hints = {f"{length:,.0f}": "accuracy in rows of this many tokens" for length in lengths}
    return [Table(f"ruler{part.mark}", part.named("Small retrieval tasks"), rows, [note], hints)] if rows else []


def _curves(part: Part) -> list[Drawing]:
    """Perplexity over the length, a panel for each protocol that was measured at two lengths or more."""
    drawn = {title: over_number(part.drawn, at_number(part, name), log=True) for title, name in PROTOCOLS.items()}
    drawn = {title: series for title, series in drawn.items() if series}
    if not drawn:
        return []
    trained = _trained_length(part)
    figure = lines(drawn, "tokens of context", "perplexity", log_x=True, log_y=True, dots=True, marked_x=trained)
    caption = f"{GEOMETRIC} {TRAINED}" if trained else GEOMETRIC
    return [drawing(f"length{part.mark}", part.named("Perplexity by length of the context"), figure, caption)]


def _by_position(part: Part) -> list[Drawing]:
    """Loss over the position in rows of the greatest length, of tables/extrapolation_positions.csv."""

    def read(path: Path) -> tuple[int, dict[float, float]]:
        rows = table_of(path, "extrapolation_positions")
        longest = max(int(row["length"]) for row in rows)
        known = [row for row in rows if int(row["length"]) == longest and row["loss"]]
        return longest, {(float(row["from"]) * float(row["to"])) ** 0.5: float(row["loss"]) for row in known}

    runs = [(one, of_runs(one.group, read)) for one in part.drawn]
    longest = max((length for _, some in runs for length, _ in some), default=0)
    rows = [(one, [losses for length, losses in some if length == longest]) for one, some in runs]
    series = [of_drawn(one, *stacked(some)) for one, some in rows if some]
    if not series:
        return []
    trained = _trained_length(part)
    figure = lines({"": series}, "position of the label", "nats per token", log_x=True, dots=True, marked_x=trained)
    title = f"Loss by position in rows of {longest:,} tokens"
    caption = f"Each point is the middle of a bin of positions. {BAND}" + (f" {TRAINED}" if trained else "")
    return [drawing(f"length-positions{part.mark}", part.named(title), figure, caption)]


def _spectra(part: Part) -> list[Drawing]:
    """Wavelength over channel of the groups that rotate, beside their perplexity by length; equal spectra
    coincide. Nothing where all have the same."""
    measured = [(title, at_number(part, PROTOCOLS[title])) for title in ("Same last tokens", "Sequential slices")]
    title, at = next(((title, at) for title, at in measured if len(at) > 1), ("", []))
    if not at:
        return []
    longest = int(at[-1][0])
    found = [(one, wavelengths(one.group.config, longest)) for one in part.drawn]
    turning = [(one, waves) for one, waves in found if waves is not None]
    if len({waves.tobytes() for _, waves in turning}) < 2:
        return []
    results, trained = over_number([one for one, _ in turning], at, log=True), _trained_length(part)
    figure, (left, right) = figures.panels(2, height=3.8)
    for one, waves in turning:
        channels = np.flatnonzero(np.isfinite(waves))
        figures.curve(left, one.index, channels, waves[channels], linewidth=1.6)
    for series in results:
        figures.band(right, series, dots=True)
    figures.log_axis(left.yaxis)
    figures.log_axis(right.yaxis)
    figures.log_axis(right.xaxis, [x for series in results for x in series.x])
    left.set(title="Wavelength", xlabel="rotary channel (pair of dims)", ylabel="tokens")
    right.set(title=title, xlabel="tokens of context", ylabel="perplexity")
    figures.mark_value(left, y=trained)
    figures.mark_value(right, x=trained)
    figures.legend(figure, {one.index: one.label for one, _ in turning}, mark=True)
    caption = (
        "Channels above the dashed line, the training length, do not complete a turn in it; channels that do not turn "
        f"at all are left out; scaled ones are those of inputs of {longest:,} tokens. {GEOMETRIC}"
    )
    return [drawing(f"spectra{part.mark}", part.named("Spectra beside results"), figure, caption)]


def _passkey(part: Part) -> list[Drawing]:
    """Accuracy, margin and exact matches over the length."""
    return _retrieval(part, "passkey", "Passkey by length of the context", "tokens of context")


def _distance(part: Part) -> list[Drawing]:
    """The same over the distance between key and question, in rows of one length."""
    return _retrieval(part, "distance", "Retrieval by distance", "tokens between key and question")


def _retrieval(part: Part, name: str, title: str, x: str) -> list[Drawing]:
    measures = {"Accuracy": "accuracy", "Margin, nats": "margin", "Exact match": "exact"}
    at = {panel: at_number(part, rf"{name}/{measure}@(\d+)") for panel, measure in measures.items()}
    drawn = {panel: series for panel, some in at.items() if (series := over_number(part.drawn, some, log=False))}
    if not drawn:
        return []
    trained, chance = _trained_length(part), {"Accuracy": CHANCE, "Margin, nats": 0.0}
    figure = lines(drawn, x, "", log_x=True, dots=True, marked_x=trained, marked_y=chance)
    caption = f"{BAND} The horizontal dashed line is chance: the true key is no likelier than a wrong one."
    caption += " The vertical one is the training length." if trained else ""
    return [drawing(f"{name}{part.mark}", part.named(title), figure, caption)]


def _maps(part: Part) -> list[Drawing]:
    """The passkey's accuracy by depth and length, mean over seeds, of tables/passkey.csv: a map for each group."""

    def read(path: Path) -> Cells:
        rows = [row for row in table_of(path, "passkey") if row["accuracy"]]
        place = [(float(row["depth"]), float(row["length"])) for row in rows]
        return dict(zip(place, [(float(row["accuracy"]), float(row["trials"])) for row in rows], strict=True))

    maps = [(one, runs) for one in part.drawn if (runs := of_runs(one.group, read))]
    if not maps:
        return []
    columns, rows = min(3, len(maps)), ceil(len(maps) / 3)
    deepest = max(len({depth for run in runs for depth, _ in run}) for _, runs in maps)
    figure, axes = figures.panels(columns, rows, height=rows * (0.75 + 0.3 * deepest) + 0.3)
    scale = figures.heat_scale(CHANCE)
    for place, (panel, (one, runs)) in enumerate(zip(axes, maps, strict=False)):
        means = {
            at: float(np.mean([run[at][0] for run in runs if at in run])) for at in {at for run in runs for at in run}
        }
        figures.heat_map(panel, one.index, one.label, means, scale)
        panel.set(xlabel="tokens of context" if place + columns >= len(maps) else "")
        panel.set(ylabel="depth of the key" if place % columns == 0 else "")
    for panel in axes[len(maps) :]:
        panel.set_visible(False)
    bar = figure.colorbar(scale, ax=axes, shrink=0.8, pad=0.02, ticks=[0, CHANCE, 1])
    bar.ax.set_yticklabels(["0 %", f"{100 * CHANCE:.0f} %\nchance", "100 %"])
    bar.outline.set_visible(False)
    trials = [trials for _, runs in maps for run in runs for _, trials in run.values()]
    low, high = f"{min(trials):.0f}", f"{max(trials):.0f}"
    reach = min(50, 196 * (CHANCE * (1 - CHANCE) / min(trials)) ** 0.5)
    caption = (
        "Share of trials, in percent, in which the true key is likelier than one that is wrong in every digit; mean "
        f"over seeds. Chance is {100 * CHANCE:.0f} %, the pale colour. A cell of one run has "
        f"{low if low == high else f'{low} to {high}'} trials: guessing alone gives 50 ± {reach:.0f} in nineteen runs "
        "of twenty. Depth 0 % is the beginning of the context."
    )
    return [drawing(f"passkey-depth{part.mark}", part.named("Passkey by depth and length"), figure, caption)]


def _trained_length(part: Part) -> float | None:
    """The length all groups trained at; None where they differ."""
    lengths = {group.config["data"].get("seq_len") for group in part.groups}
    return float(lengths.pop()) if len(lengths) == 1 and None not in lengths else None
