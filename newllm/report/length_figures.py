"""Perplexity against the length of the context, by position in the longest rows, and beside the spectra."""

import numpy as np

from newllm.report.curves import BAND, GEOMETRIC
from newllm.report.drawing import Drawing, drawing
from newllm.report.figures.lines import lines
from newllm.report.figures.series import Series, over_seeds
from newllm.report.figures.spectra import spectra
from newllm.report.numbered import at_number, over_number
from newllm.report.reading import of_runs, stacked, table
from newllm.report.study import Part

# Protocol -> the metric, with the number of tokens.
PROTOCOLS = {
    "Sequential slices": r"extrapolation/ppl@(\d+)",
    "Same last tokens": r"extrapolation/tail_ppl@(\d+)",
    "Sliding window": r"extrapolation/sliding_ppl@(\d+)",
}
TRAINED = "The dashed line is the training length."


def by_length(part: Part) -> list[Drawing]:
    """Perplexity over the length, a panel for each protocol that was measured at two lengths or more."""
    panels = {}
    for title, pattern in PROTOCOLS.items():
        at = at_number(part, pattern)
        if len(at) > 1 and (series := over_number(part.drawn, at, log=True)):
            panels[title] = series
    if not panels:
        return []
    trained = trained_length(part)
    figure = lines(panels, "tokens of context", "perplexity", log_x=True, log_y=True, dots=True, marked_x=trained)
    caption = f"{GEOMETRIC} {TRAINED}" if trained else GEOMETRIC
    return [drawing(f"length{part.mark}", part.named("Perplexity by length of the context"), figure, caption)]


def by_position_in_long_rows(part: Part) -> list[Drawing]:
    """Loss over the position in rows of the greatest length, of tables/extrapolation_positions.csv."""
    read = {one.index: of_runs(one.group, lambda path: _positions(table(path, "extrapolation_positions")))
            for one in part.drawn}  # fmt: skip
    longest = max((length for runs in read.values() for length, _ in runs), default=0)
    series = []
    for one in part.drawn:
        rows = [losses for length, losses in read[one.index] if length == longest]
        if rows:
            series.append(over_seeds(one.index, one.group.label, *stacked(rows)))
    if not series:
        return []
    trained = trained_length(part)
    figure = lines({"": series}, "position of the label", "nats per token", log_x=True, dots=True, marked_x=trained)
    title = f"Loss by position in rows of {longest:,} tokens"
    caption = f"Each point is the middle of a bin of positions. {BAND}" + (f" {TRAINED}" if trained else "")
    return [drawing(f"length-positions{part.mark}", part.named(title), figure, caption)]


def spectra_beside(part: Part) -> list[Drawing]:
    """Wavelength over channel of the groups that rotate, beside their perplexity by length; lines of one spectrum lie
    on each other. Nothing where all have the same."""
    from newllm.report.spectrum import wavelengths

    measured = {title: at_number(part, PROTOCOLS[title]) for title in ("Same last tokens", "Sequential slices")}
    title, at = next(((title, at) for title, at in measured.items() if len(at) > 1), ("", []))
    if not at:
        return []
    longest = int(at[-1][0])
    found = [(one, wavelengths(one.group.config, longest)) for one in part.drawn]
    turning = [(one, waves) for one, waves in found if waves is not None]
    if len({waves.tobytes() for _, waves in turning}) < 2:
        return []
    left = [_line(one.index, one.group.label, waves) for one, waves in turning]
    right = over_number([one for one, _ in turning], at, log=True)
    trained = trained_length(part)
    caption = (
        "Channels above the dashed line, the training length, do not complete a turn in it; channels that do not turn "
        f"at all are left out; scaled ones are shown as they are for {longest:,} tokens. {GEOMETRIC}"
    )
    return [drawing(f"spectra{part.mark}", part.named("Spectra beside results"),
                    spectra(left, right, trained, title), caption)]  # fmt: skip


def trained_length(part: Part) -> float | None:
    """The length all groups trained at; None where they differ."""
    lengths = {group.config["data"].get("seq_len") for group in part.groups}
    return float(lengths.pop()) if len(lengths) == 1 and None not in lengths else None


def _positions(rows: list[dict[str, str]]) -> tuple[int, dict[float, float]] | None:
    """The greatest length, and there: middle of the bin (geometric) -> loss."""
    longest = max((int(row["length"]) for row in rows), default=None)
    if longest is None:
        return None
    known = [row for row in rows if int(row["length"]) == longest and row["loss"]]
    return longest, {(float(row["from"]) * float(row["to"])) ** 0.5: float(row["loss"]) for row in known}


def _line(index: int, label: str, waves: np.ndarray) -> Series:
    """A spectrum as a series; pairs that do not turn have no finite wavelength."""
    finite = np.isfinite(waves)
    nothing = np.full(int(finite.sum()), np.nan)
    return Series(index, label, np.flatnonzero(finite).astype(float), waves[finite], nothing, nothing)
