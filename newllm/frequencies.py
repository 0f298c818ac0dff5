"""`newllm frequencies [key=value …] [length=N,…] [out=FILE]`: rotary spectra of configurations, without training.

Each combination of the values, as in a sweep, gives a row: its number of dim pairs, the shortest and longest
wavelength, how many wavelengths exceed the training length, the first and last frequency w; and how similar distant
positions look (phase collision; lower is less similar; it does not predict perplexity).

  length   input lengths in tokens, for encodings with a scaling (default: the training length); a row for each
  out      FILE.png or FILE.svg: wavelength by channel; FILE.csv: the frequencies; may be given twice

--config-dir FOLDER adds your own YAML files, laid out like conf/.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from newllm.config.catalog import plain
from newllm.config.compose import catalog_for
from newllm.errors import ConfigError, Parser, run_command
from newllm.position.frequencies import channels_longer_than, phase_collision, wavelengths
from newllm.store.csv_text import as_csv
from newllm.suggest import nearest

_ENDINGS = (".png", ".svg", ".csv")


@dataclass(frozen=True)
class Spectrum:
    """inv_freq [pairs] of an encoding, scaled for inputs of `length` tokens; the model was trained at `seq_len`."""

    label: str
    inv_freq: np.ndarray
    temperature: float
    length: int
    seq_len: int


def spectra(overrides: Sequence[str], lengths: Sequence[int] = (), config_dir: str | None = None) -> list[Spectrum]:
    """The spectra of all configurations that `overrides` describe, as in a sweep, at each of the lengths.

    Builds the encodings as their models would, but no model. Raises ConfigError if none of them rotates.
    """
    from newllm.analysis.labels import name_groups
    from newllm.analysis.settings import nodes_of, settings_of
    from newllm.sweep.command import read

    distinct: dict[str, Mapping[str, Any]] = {}  # what the spectrum depends on, as JSON -> the first such configuration
    for run in read(overrides, config_dir=config_dir, several=True).runs:
        nodes = [run.config[name] for name in ("pos_encoding", "model", "attention")]
        distinct.setdefault(
            json.dumps([*nodes, run.config["data"]["seq_len"]], sort_keys=True, default=str), run.config
        )
    configs = [_checked(config) for config in distinct.values()]
    results = []
    names, _ = name_groups(configs, [settings_of(nodes) for nodes in nodes_of(configs)])
    for name, config in zip(names, configs, strict=True):
        encoding, seq_len = _encoding(config), config["data"]["seq_len"]
        for length in lengths or [seq_len]:
            encoding.adapt(length)
            inv_freq = np.array([frequency for _, _, frequency in encoding.pairs()])
            temperature = float(getattr(encoding, "temperature", 1.0))
            label = f"{name} · length {length}" if len(lengths) > 1 else name
            if len(inv_freq):
                results.append(Spectrum(label, inv_freq, temperature, length, seq_len))
    if not results:
        choices = ", ".join(dict.fromkeys(str(config["choices"]["pos_encoding"]) for config in configs))
        raise ConfigError(f"pos_encoding={choices} rotates nothing, so it has no spectrum; try pos_encoding=rope.")
    return results


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its values converted to their types. Raises ConfigError if its model can't be built."""
    import torch
    from omegaconf import OmegaConf

    from newllm.config.values import check_values
    from newllm.model import build_model

    checked = check_values(OmegaConf.create(dict(config)))
    with torch.device("meta"):
        build_model(checked, tokens=checked.model.vocab_size or 64)
    return plain(checked)


def _encoding(config: Mapping[str, Any]) -> Any:
    """The encoding, with the sizes that the model would pass to it."""
    from newllm.attention import Attention
    from newllm.build import build
    from newllm.config.values import class_of
    from newllm.position.encoding import PositionEncoding

    model, attention = config["model"], config["attention"]
    head_dim = model.get("head_dim") or model["hidden_size"] // model["heads"]
    return build(
        config["pos_encoding"],
        PositionEncoding,
        num_layers=model["num_layers"],
        heads=model["heads"],
        head_dim=class_of(attention, Attention).rotary_width(attention, head_dim),
        query_dim=head_dim,
        hidden_size=model["hidden_size"],
        seq_len=config["data"]["seq_len"],
    )


def waves(spectra: Sequence[Spectrum]) -> list[dict[str, Any]]:
    """Wavelengths and frequencies of each spectrum, and temperatures if any differs from 1."""
    rows = []
    for spectrum in spectra:
        lengths = wavelengths(spectrum.inv_freq)
        row = {
            "configuration": spectrum.label,
            "pairs": len(spectrum.inv_freq),
            "shortest": float(lengths.min()),
            "longest": float(lengths.max()),
            f"> {spectrum.seq_len}": channels_longer_than(spectrum.inv_freq, spectrum.seq_len),
            "first w": float(spectrum.inv_freq[0]),
            "last w": float(spectrum.inv_freq[-1]),
        }
        if any(other.temperature != 1 for other in spectra):
            row["temperature"] = round(spectrum.temperature, 4)
        rows.append(row)
    return rows


def collisions(spectra: Sequence[Spectrum]) -> list[dict[str, Any]]:
    """The phase collision of each spectrum, by band of distances and in total."""
    rows = []
    for spectrum in spectra:
        scores = phase_collision(spectrum.inv_freq)
        rows.append({"configuration": spectrum.label, **{name: round(score, 4) for name, score in scores.items()}})
    return rows


def write_channels(spectra: Sequence[Spectrum], file: Path) -> None:
    """Write a CSV file with a row per channel: configuration, seq_len, length, channel, inv_freq, wavelength."""
    rows = []
    for spectrum in spectra:
        about = {"configuration": spectrum.label, "seq_len": spectrum.seq_len, "length": spectrum.length}
        for channel, (w, wave) in enumerate(zip(spectrum.inv_freq, wavelengths(spectrum.inv_freq), strict=True)):
            rows.append({**about, "channel": channel, "inv_freq": float(w), "wavelength": float(wave)})
    file.write_text(as_csv(rows), encoding="utf-8", newline="")


def draw(spectra: Sequence[Spectrum], file: Path) -> None:
    """Plot wavelengths by channel; training lengths are dashed lines. Equal spectra give equal bytes."""
    from newllm.report.figures import MUTED, Panel, Series, mark_value, plot, short, styled

    with styled():
        series = [Series.over_seeds(i, one.label, [wavelengths(one.inv_freq)]) for i, one in enumerate(spectra)]
        panel = Panel(series, "channel (pair of dims)", "wavelength (tokens per full turn)", log_y=True)
        figure = plot([panel], width=7.6, height=4.2)
        axes = figure.axes[0]
        for length in sorted({one.seq_len for one in spectra}):
            mark_value(axes, y=length)
            text = f"training length {short(length)}"
            axes.annotate(text, (0, length), xytext=(3, 3), textcoords="offset points", color=MUTED, fontsize=8,
                          xycoords=("axes fraction", "data"))  # fmt: skip
        figure.savefig(file, dpi=140, metadata={"Software": None} if file.suffix == ".png" else {"Date": None})


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, argv, usage=__doc__)


def _run(argv: list[str]) -> int:
    parser = Parser(prog="newllm frequencies", add_help=False)
    parser.add_argument("words", nargs="*")
    parser.add_config_dir()
    parser.add_argument("--multirun", "-m", action="store_true")  # accepted, as every call is a sweep
    options = parser.parse_intermixed_args(argv)
    files = [_file(word.removeprefix("out=")) for word in options.words if word.startswith("out=")]
    lengths = [length for word in options.words if word.startswith("length=") for length in _lengths(word)]
    overrides = [word for word in options.words if not word.startswith(("out=", "length="))]
    catalog = catalog_for(options.config_dir)
    known = [*catalog.groups, *catalog.axes, *catalog.sweep_options, "out", "length"]
    for key in (word.partition("=")[0] for word in overrides):
        if key not in known and (close := nearest(key, known)) in ("out", "length"):
            raise ConfigError(f"{key} is unknown; did you mean {close}?")

    from newllm.console import Console

    rotary = spectra(overrides, lengths, options.config_dir)
    console = Console()
    console.section("Wavelengths: tokens per full turn, and how many exceed the training length", [waves(rotary)])
    console.section(
        "Phase collision: how similar positions look at distances of 1-100, 500-5000 and 10000", [collisions(rotary)]
    )
    for file in files:
        (write_channels if file.suffix == ".csv" else draw)(rotary, file)
        print(f"Written to {file}")
    return 0


def _file(name: str) -> Path:
    file = Path(name)
    if file.suffix not in _ENDINGS or not file.parent.is_dir():
        raise ConfigError(
            f"out={name} must be a {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]} file in an existing folder, "
            "as in out=frequencies.png."
        )
    return file


def _lengths(word: str) -> list[int]:
    parts = word.removeprefix("length=").strip("[]").split(",")
    if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", part) and int(part) for part in parts):
        raise ConfigError(f"{word}: expected whole numbers from 1 to 10^9 - 1, as in length=4096 or length=2048,8192.")
    return [int(part) for part in parts]


if __name__ == "__main__":
    sys.exit(main())
