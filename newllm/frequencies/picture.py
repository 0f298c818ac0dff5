"""Wavelength against channel, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from newllm.frequencies.spectra import Spectrum
from newllm.position.frequencies import wavelengths
from newllm.report.figures.style import (
    MUTED,
    Marks,
    canvas,
    colour,
    dash,
    mark_value,
    plain_ticks,
    short,
    styled,
)


def draw(spectra: Sequence[Spectrum], file: Path) -> None:
    """Write the picture, the same bytes for the same numbers; training lengths are dashed lines."""
    with styled():
        figure, (axes,) = canvas(width=7.6, height=4.2)
        for index, one in enumerate(spectra):
            waves = wavelengths(one.inv_freq)
            axes.plot(range(len(waves)), waves, color=colour(index), linestyle=dash(index), marker=".", markersize=5)
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        axes.set(xlabel="channel (pair of dims)", ylabel="wavelength, tokens in a full turn")
        for length in sorted({one.seq_len for one in spectra}):
            mark_value(axes, y=length)
            axes.annotate(f"training length {short(length)}", (0, length), xytext=(3, 3), textcoords="offset points",
                          xycoords=("axes fraction", "data"), color=MUTED, fontsize=8)  # fmt: skip
        if len(spectra) > 1:
            Marks().legend(figure, [(index, one.label) for index, one in enumerate(spectra)])
        else:
            axes.set_title(spectra[0].label)
        figure.savefig(file, dpi=140, metadata={"Software": None} if file.suffix == ".png" else {"Date": None})
