"""Spectra as tables: a row for each to read, and a row for each channel to go on with."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from newllm.frequencies.spectra import Spectrum
from newllm.position.frequencies import channels_longer_than, phase_collision, wavelengths


def waves(spectra: Sequence[Spectrum]) -> list[dict[str, Any]]:
    """Wavelengths and frequencies of each spectrum, and its temperature where some scaling has one."""
    warm = any(one.temperature != 1 for one in spectra)
    return [_waves(one) | ({"temperature": round(one.temperature, 4)} if warm else {}) for one in spectra]


def collisions(spectra: Sequence[Spectrum]) -> list[dict[str, Any]]:
    """The phase collision of each spectrum, by band of distances and in all."""
    scores = [phase_collision(one.inv_freq) for one in spectra]
    return [
        {"configuration": one.label, **{name: round(score, 4) for name, score in found.items()}}
        for one, found in zip(spectra, scores, strict=True)
    ]


def write_channels(spectra: Sequence[Spectrum], file: Path) -> None:
    """A CSV file with a row for each channel: configuration, seq_len, length, channel, inv_freq, wavelength."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["configuration", "seq_len", "length", "channel", "inv_freq", "wavelength"])
        for one in spectra:
            for channel, (w, wave) in enumerate(zip(one.inv_freq, wavelengths(one.inv_freq), strict=True)):
                writer.writerow([one.label, one.seq_len, one.length, channel, float(w), float(wave)])


def _waves(one: Spectrum) -> dict[str, Any]:
    lengths = wavelengths(one.inv_freq)
    return {
        "configuration": one.label,
        "pairs": len(one.inv_freq),
        "shortest": float(lengths.min()),
        "longest": float(lengths.max()),
        f"> {one.seq_len}": channels_longer_than(one.inv_freq, one.seq_len),
        "first w": float(one.inv_freq[0]),
        "last w": float(one.inv_freq[-1]),
    }
