"""Long context: what each group reaches at each length, which differences are real, retrieval, spectra."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from newllm.analysis.comparison import Comparison
from newllm.analysis.run_groups import Group
from newllm.errors import ConfigError
from newllm.position.frequencies import wavelengths
from newllm.position.frequencies.nodes import scale, spectrum
from newllm.position.frequencies.spectrum import rotary_dims
from newllm.report.figures import Drawing, Panel, heat_maps
from newllm.report.result_tables import comparison_table
from newllm.report.series import BAND, GEOMETRIC, Numbered, numbered_metrics, over_numbers, read_tables
from newllm.report.study import Part, Section, Study
from newllm.report.tables import (
    ABSENT,
    PLUS_MINUS,
    Cell,
    Table,
    difference_texts,
    make_row,
    mean_cell,
    number_cell,
    verdict_cell,
    verdict_kind,
)
from newllm.store.own_code import use_code_of_run
from newllm.store.run_directory import RunDirectory

SLICES, TAIL, WINDOW = (rf"extrapolation/{name}@(\d+)" for name in ("ppl", "tail_ppl", "sliding_ppl"))
PROTOCOLS = {"Sequential slices": SLICES, "Same last tokens": TAIL, "Sliding window": WINDOW}
RULER = r"ruler/[\w-]+@(\d+)"
CHANCE = 0.5  # of the true key against one wrong key
LENGTH = "tokens of context"
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
_COMPARED = (SLICES, TAIL, WINDOW, r"passkey/accuracy@(\d+)", r"distance/accuracy@(\d+)", RULER)


def long_context(study: Study) -> list[Section]:
    """Two sections: a table per measure, groups by lengths, with the verdict against the baseline, the ruler and the
    figures; then all comparisons at all lengths in full."""
    tables, comparison_tables = [], []
    for part in study.parts:
        measured = [numbered for pattern in _COMPARED if (numbered := numbered_metrics(part, pattern))]
        metrics = [metric for numbered in measured for _, metric in numbered]
        others = [name for name in metrics if name not in part.options.compare]
        every, family = part.compared(metrics), study.family_in_words(part, others)
        if part.options.family == "table" and len(others) < len(metrics):
            family += f" {', '.join({*metrics} - {*others})}: corrected with the main comparisons."
        for numbered in measured:
            if numbered[0][1].rpartition("@")[0] in _TITLES:
                tables.append(_groups_by_length(part, numbered, every, family))
        tables += _ruler(part)
        if every:
            title = f"Comparisons with {part.baseline.words} at each length"
            comparison_tables.append(comparison_table("length-comparisons", title, part, every, family))
    figures = (_curves, _loss_by_position, _spectra, _retrieval, _passkey_maps)
    return [
        study.figure_section("length", "Long context", *figures, tables=tables),
        Section("length-comparisons", "Long context: all comparisons", (), comparison_tables),
    ]


def _groups_by_length(part: Part, numbered: Numbered, comparisons: list[Comparison], family: str) -> Table:
    name = numbered[0][1].rpartition("@")[0]
    title, meaning = _TITLES[name]
    compared = {(comparison.candidate, comparison.metric): comparison for comparison in comparisons}
    rows = []
    for group in part.groups:
        cells = {f"{n:,.0f}": _at_length(group, metric, compared.get((group.label, metric))) for n, metric in numbered}
        if any(cell.text != ABSENT for cell in cells.values()):
            rows.append(make_row({"group": group.label, **cells}))
    notes = [meaning]
    if comparisons:
        notes.append(
            f"Baselines with their mean ± sample standard deviation; the others with their difference to "
            f"{part.baseline.words} and its {100 * part.options.confidence:.4g} % interval, paired by seed. {family}"
        )
    hints = {f"{number:,.0f}": metric for number, metric in numbered}
    return Table(f"{name.replace('/', '-')}{part.mark}", part.named(title), rows, notes, hints)


def _at_length(group: Group, metric: str, comparison: Comparison | None) -> Cell:
    """The difference to the baseline with its verdict; the mean of the baseline, and where nothing is compared."""
    mean = mean_cell(group, metric)
    if comparison is None:
        return mean
    csv = {
        **mean.csv,
        f"{metric} difference": comparison.difference,
        f"{metric} low": comparison.low,
        f"{metric} high": comparison.high,
        f"{metric} p corrected": comparison.p_corrected,
        f"{metric} verdict": comparison.verdict,
    }
    if comparison.incomplete:
        return replace(mean, text=f"{mean.text} · {comparison.incomplete}", csv=csv)
    difference, interval = difference_texts(comparison)
    said = comparison.verdict in ("better", "worse", "differs") or (comparison.unpaired and not comparison.family)
    verdict = f" {verdict_cell(comparison).text}" if said else ""
    shown = f"{difference}{verdict}" if interval == ABSENT else f"{difference} {interval}{verdict}"
    return Cell(shown, mean.value, csv, kind=verdict_kind(comparison), hint=f"{mean.text}; {comparison.why}")


def _ruler(part: Part) -> list[Table]:
    """Accuracy of each group and task at each length, with the task's chance."""
    numbered = numbered_metrics(part, RULER)
    lengths = sorted({length for length, _ in numbered})
    tables = (table for group in part.groups for table in read_tables(group, "ruler", ("task", "chance")))
    chance = dict(next(tables, pd.DataFrame()).itertuples(index=False)) if numbered else {}
    rows = []
    for task in dict.fromkeys(metric.removeprefix("ruler/").rpartition("@")[0] for _, metric in numbered):
        for group in part.groups:
            cells = {f"{length:,.0f}": mean_cell(group, f"ruler/{task}@{length:.0f}") for length in lengths}
            if any(cell.text != ABSENT for cell in cells.values()):
                by_chance = number_cell(chance.get(task), "chance", f"{chance.get(task, 0):.3g}")
                rows.append(make_row({"group": group.label, "task": task, "chance": by_chance, **cells}))
    note = f"Share of trials in which the right candidate is the likeliest; {PLUS_MINUS.lower()}."
    hints = {f"{length:,.0f}": "accuracy in rows of this many tokens" for length in lengths}
    return [Table(f"ruler{part.mark}", part.named("Small retrieval tasks"), rows, [note], hints)] if rows else []


def _curves(part: Part) -> list[Drawing]:
    """Perplexity over the length, a panel for each protocol that was measured at two lengths or more."""
    panels = []
    for title, pattern in PROTOCOLS.items():
        series = over_numbers(part.drawn, numbered_metrics(part, pattern), log=True)
        panels.append(Panel(series, LENGTH, "perplexity", title, log_x=True, log_y=True, mark_x=part.trained_length))
    caption = f"{GEOMETRIC} {TRAINED}" if part.trained_length else GEOMETRIC
    return part.figure("length", "Perplexity by length of the context", panels, caption)


def _loss_by_position(part: Part) -> list[Drawing]:
    """Loss over the position in rows of the greatest length, of tables/extrapolation_positions.csv."""
    columns = ("length", "from", "to", "loss")
    metric = next((metric for _, metric in reversed(numbered_metrics(part, SLICES))), "")
    tables_of = {drawn: read_tables(drawn.group, "extrapolation_positions", columns, metric) for drawn in part.drawn}
    longest = max((table["length"].max() for tables in tables_of.values() for table in tables), default=0)
    series = []
    for drawn, tables in tables_of.items():
        bins = [table[table["length"] == longest] for table in tables]
        losses = [rows.set_index("from")["loss"] for rows in bins if len(rows)]
        if losses:
            series.append(drawn.series(pd.DataFrame(losses)))
    panel = Panel(series, "position of the label", "nats per token", log_x=True, mark_x=part.trained_length)
    caption = f"Each point is the mean over a bin of positions, drawn at its first position. {BAND}"
    caption += f" {TRAINED}" if part.trained_length else ""
    return part.figure("length-positions", f"Loss by position in rows of {longest:,} tokens", [panel], caption)


def _spectra(part: Part) -> list[Drawing]:
    """The wavelength of each channel of the groups that rotate, next to their perplexity by length.

    Nothing where all have the same spectrum.
    """
    measured = [
        (title, numbered_metrics(part, PROTOCOLS[title])) for title in ("Same last tokens", "Sequential slices")
    ]
    title, metrics = next(((title, metrics) for title, metrics in measured if len(metrics) > 1), ("", []))
    if not metrics:
        return []
    longest, trained = int(metrics[-1][0]), part.trained_length
    spectra = {}
    for one in part.drawn:
        with suppress(ConfigError):  # other code of the same name has been imported
            use_code_of_run(RunDirectory(one.group.path))
            if (waves := wavelengths_of(one.group.config, longest)) is not None:
                spectra[one] = waves
    if len({waves.tobytes() for waves in spectra.values()}) < 2:
        return []
    channels = [one.series([waves]) for one, waves in spectra.items()]
    left = Panel(channels, "rotary channel (pair of dims)", "tokens", "Wavelength", log_y=True, mark_y=trained)
    results = over_numbers(list(spectra), metrics, log=True)
    right = Panel(results, LENGTH, "perplexity", title, log_x=True, log_y=True, mark_x=trained)
    caption = (
        "Channels above the dashed line, the training length, do not complete a turn in it; channels that do not turn "
        f"at all are left out; scaled ones are those of inputs of {longest:,} tokens. {GEOMETRIC}"
    )
    return part.figure("spectra", "Spectra and results", [left, right], caption, height=3.8)


def wavelengths_of(config: Mapping[str, Any], length: int) -> np.ndarray | None:
    """Tokens per full turn of each rotary channel for inputs of `length` tokens, from the configuration, without torch.

    Float64 [K], fastest first, infinite where a pair does not turn; None for encodings without a node `frequencies`,
    which rotate nothing. A learned tau counts with its initial value.
    """
    encoding = config["pos_encoding"]
    parts = [encoding, *(encoding.get("parts") or {}).values()]
    node = next((part for part in parts if "frequencies" in part), None)
    if node is None:
        return None
    model, rope_dim = config["model"], config["attention"].get("rope_dim")  # the rotary key of latent attention
    try:
        head_dim = int(rope_dim or model.get("head_dim") or model["hidden_size"] // model["heads"])
        seq_len = config["data"]["seq_len"]
        dims = rotary_dims(head_dim, node.get("rotary_pct", 1.0))
        trained = spectrum(node["frequencies"], dims, theta=node.get("theta"), head_dim=head_dim, seq_len=seq_len)
        scaled, _ = scale(trained, node.get("scaling"), length=length, seq_len=seq_len)
    except (ConfigError, KeyError, TypeError):
        return None  # another version of newllm wrote it
    return wavelengths(scaled)


def _retrieval(part: Part) -> list[Drawing]:
    """Accuracy, margin and exact matches, over the length and over the distance between key and question."""
    drawings: list[Drawing] = []
    for name, title, x in (
        ("passkey", "Passkey by length of the context", LENGTH),
        ("distance", "Retrieval by distance", "tokens between key and question"),
    ):
        panels = []
        for measure, label, chance in (
            ("accuracy", "Accuracy", CHANCE),
            ("margin", "Margin, nats", 0.0),
            ("exact", "Exact match", None),
        ):
            series = over_numbers(part.drawn, numbered_metrics(part, rf"{name}/{measure}@(\d+)"))
            panels.append(Panel(series, x, "", label, log_x=True, mark_x=part.trained_length, mark_y=chance))
        caption = f"{BAND} The horizontal dashed line is chance: the true key is no likelier than a wrong one."
        caption += " The vertical one is the training length." if part.trained_length else ""
        drawings += part.figure(name, title, panels, caption)
    return drawings


def _passkey_maps(part: Part) -> list[Drawing]:
    """The passkey's accuracy by depth and length, mean over seeds, of tables/passkey.csv: a map for each group."""
    maps, trials = {}, []
    metric = next((metric for _, metric in reversed(numbered_metrics(part, r"passkey/accuracy@(\d+)"))), "")
    for one in part.drawn:
        if tables := read_tables(one.group, "passkey", ("depth", "length", "accuracy", "trials"), metric):
            rows = pd.concat(tables).dropna(subset="accuracy")
            maps[one.index, one.label] = rows.pivot_table("accuracy", "depth", "length")  # means
            trials += [rows["trials"].min(), rows["trials"].max()]
    if not maps:
        return []
    figure = heat_maps(maps, CHANCE, LENGTH, "depth of the key")
    low, high = f"{min(trials):.0f}", f"{max(trials):.0f}"
    reach = min(50, 196 * (CHANCE * (1 - CHANCE) / min(trials)) ** 0.5)
    caption = (
        "Share of trials, in percent, in which the true key is likelier than one that is wrong in every digit; mean "
        f"over seeds. Chance is {100 * CHANCE:.0f} %, the pale colour. A cell of one run has "
        f"{low if low == high else f'{low} to {high}'} trials: guessing alone gives 50 ± {reach:.0f} in nineteen runs "
        "of twenty. Depth 0 % is the beginning of the context."
    )
    return [part.drawing("passkey-depth", "Passkey by depth and length", figure, caption)]
