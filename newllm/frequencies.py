"""`newllm frequencies [key=value …] [length=N,…] [out=FILE]`: rotary spectra of configurations, nothing trained.

Every combination of the values typed, as in a sweep, has a row: its pairs of dims, the wavelengths of the fastest and
the slowest, how many are longer than the rows of training, the first and last frequency w; and how alike distant
positions look (phase collision, lower is less alike: a description, no prediction of perplexity).

  length   tokens of the inputs that a scaling is for (default: the training length); several: a row for each
  out      a picture of wavelength against channel as .png or .svg, the frequencies as .csv; may be given twice

--config-dir FOLDER adds YAML files of your own, laid out like conf/.
"""

import csv
import json
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from newllm.errors import ConfigError, Parser, run_command
from newllm.position.frequencies import channels_longer_than, phase_collision, wavelengths

_ENDINGS = (".png", ".svg", ".csv")


@dataclass(frozen=True)
class Spectrum:
    """inv_freq [pairs] of an encoding that is set for inputs of `length` tokens, of a model trained at `seq_len`."""

    label: str
    inv_freq: np.ndarray
    temperature: float
    length: int
    seq_len: int


def spectra(overrides: Sequence[str], lengths: Sequence[int] = (), config_dir: str | None = None) -> list[Spectrum]:
    """The spectra of all configurations that `overrides` describe, as in a sweep, at each of the lengths.

    Encodings are built as their models would build them; the models are not. Raises ConfigError if none turns pairs.
    """
    from newllm.analysis.labels import labels, nodes_of, settings_of
    from newllm.sweep.command import read

    different: dict[str, Mapping[str, Any]] = {}
    for run in read(overrides, config_dir=config_dir, several=True).runs:
        nodes = [run.config[name] for name in ("pos_encoding", "model", "attention")]
        different.setdefault(
            json.dumps([*nodes, run.config["data"]["seq_len"]], sort_keys=True, default=str), run.config
        )
    configs = list(different.values())
    found = []
    for name, config in zip(labels(configs, [settings_of(one) for one in nodes_of(configs)]), configs, strict=True):
        encoding, seq_len = _encoding(config), config["data"]["seq_len"]
        for length in lengths or [seq_len]:
            encoding.adapt(length)
            inv_freq = np.array([frequency for _, _, frequency in encoding.pairs()])
            temperature = float(getattr(encoding, "temperature", 1.0))
            label = f"{name} · length {length}" if len(lengths) > 1 else name
            if len(inv_freq):
                found.append(Spectrum(label, inv_freq, temperature, length, seq_len))
    if not found:
        choices = ", ".join(dict.fromkeys(str(config["choices"]["pos_encoding"]) for config in configs))
        raise ConfigError(f"pos_encoding={choices} turns no pairs of dims, so there is no spectrum; try rope.")
    return found


def _encoding(config: Mapping[str, Any]) -> Any:
    """The encoding with the sizes that the model would hand over to it."""
    from newllm.build import build

    model, attention = config["model"], config["attention"]
    head_dim = model["hidden_size"] // model["heads"]
    return build(
        config["pos_encoding"],
        num_layers=model["num_layers"],
        heads=model["heads"],
        head_dim=pkgutil.resolve_name(attention["_target_"]).rotary_width(attention, head_dim),
        hidden_size=model["hidden_size"],
        seq_len=config["data"]["seq_len"],
    )


def waves(spectra: Sequence[Spectrum]) -> list[dict[str, Any]]:
    """Wavelengths and frequencies of each spectrum, and its temperature where some scaling has one."""
    rows = []
    for one in spectra:
        lengths = wavelengths(one.inv_freq)
        row = {
            "configuration": one.label,
            "pairs": len(one.inv_freq),
            "shortest": float(lengths.min()),
            "longest": float(lengths.max()),
            f"> {one.seq_len}": channels_longer_than(one.inv_freq, one.seq_len),
            "first w": float(one.inv_freq[0]),
            "last w": float(one.inv_freq[-1]),
        }
        if any(other.temperature != 1 for other in spectra):
            row["temperature"] = round(one.temperature, 4)
        rows.append(row)
    return rows


def collisions(spectra: Sequence[Spectrum]) -> list[dict[str, Any]]:
    """The phase collision of each spectrum, by band of distances and in all."""
    return [
        {"configuration": one.label, **{name: round(score, 4) for name, score in phase_collision(one.inv_freq).items()}}
        for one in spectra
    ]


def write_channels(spectra: Sequence[Spectrum], file: Path) -> None:
    """A CSV file with a row for each channel: configuration, seq_len, length, channel, inv_freq, wavelength."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["configuration", "seq_len", "length", "channel", "inv_freq", "wavelength"])
        for one in spectra:
            for channel, (w, wave) in enumerate(zip(one.inv_freq, wavelengths(one.inv_freq), strict=True)):
                writer.writerow([one.label, one.seq_len, one.length, channel, float(w), float(wave)])


def draw(spectra: Sequence[Spectrum], file: Path) -> None:
    """Write the picture, the same bytes for the same numbers; training lengths are dashed lines."""
    from newllm.report import figures as style

    with style.styled():
        figure, (axes,) = style.panels(width=7.6, height=4.2)
        for index, one in enumerate(spectra):
            drawn = wavelengths(one.inv_freq)
            look = {"color": style.colour(index), "linestyle": style.dash(index), "marker": ".", "markersize": 5}
            axes.plot(range(len(drawn)), drawn, **look)
        style.log_axis(axes.yaxis)
        axes.set(xlabel="channel (pair of dims)", ylabel="wavelength, tokens in a full turn")
        for length in sorted({one.seq_len for one in spectra}):
            style.mark_value(axes, y=length)
            text = f"training length {style.short(length)}"
            axes.annotate(text, (0, length), xytext=(3, 3), textcoords="offset points", color=style.MUTED, fontsize=8,
                          xycoords=("axes fraction", "data"))  # fmt: skip
        if len(spectra) > 1:
            style.legend(figure, {index: one.label for index, one in enumerate(spectra)})
        else:
            axes.set_title(spectra[0].label)
        figure.savefig(file, dpi=140, metadata={"Software": None} if file.suffix == ".png" else {"Date": None})


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    if any(word in ("-h", "--help") for word in argv):
        print((__doc__ or "").replace("`", ""))
        return 0
    parser = Parser(prog="newllm frequencies", add_help=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--multirun", "-m", action="store_true")  # as it is in any case
    given = parser.parse_intermixed_args(argv)
    files = [_file(word.removeprefix("out=")) for word in given.words if word.startswith("out=")]
    lengths = [length for word in given.words if word.startswith("length=") for length in _lengths(word)]
    overrides = [word for word in given.words if not word.startswith(("out=", "length="))]

    from newllm.console import Console

    found = spectra(overrides, lengths, given.config_dir)
    console = Console()
    console.section(
        "Wavelengths: tokens in a full turn, and how many are longer than the rows of training", [waves(found)]
    )
    console.section(
        "Phase collision: how alike positions look at distances of 1-100, 500-5000 and 10000", [collisions(found)]
    )
    for file in files:
        (write_channels if file.suffix == ".csv" else draw)(found, file)
        print(f"Written to {file}")
    return 0


def _file(name: str) -> Path:
    file = Path(name)
    if file.suffix not in _ENDINGS or not file.parent.is_dir():
        raise ConfigError(
            f"out={name} is no {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]} file in a folder that exists; "
            "type out=frequencies.png."
        )
    return file


def _lengths(word: str) -> list[int]:
    parts = word.removeprefix("length=").strip("[]").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{word}: expected whole numbers above 0, as in length=4096 or length=2048,8192.")
    return [int(part) for part in parts]


if __name__ == "__main__":
    sys.exit(main())
