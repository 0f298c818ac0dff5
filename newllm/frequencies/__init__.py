"""`newllm frequencies [key=value …] [length=N,…] [out=FILE]`: rotary spectra of configurations, nothing trained.

Every combination of the values typed, as in a sweep, has a row: its pairs of dims, the wavelengths of the fastest and
the slowest, how many are longer than the rows of training, the first and last frequency w; and how alike distant
positions look (phase collision, lower is less alike: a description, no prediction of perplexity).

  length   tokens of the inputs that a scaling is for (default: the training length); several: a row for each
  out      a picture of wavelength against channel as .png or .svg, the frequencies as .csv; may be given twice

--config-dir FOLDER adds YAML files of your own, laid out like conf/.
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from newllm.cli import guarded
from newllm.errors import ConfigError

_ENDINGS = (".png", ".svg", ".csv")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    if any(word in ("-h", "--help") for word in argv):
        print((__doc__ or "").replace("`", ""))
        return 0
    typed = _Parser(add_help=False)
    typed.add_argument("words", nargs="*")
    typed.add_argument("--config-dir", "-cd")
    typed.add_argument("--multirun", "-m", action="store_true")  # as it is in any case
    given = typed.parse_intermixed_args(argv)
    files = [_file(word.removeprefix("out=")) for word in given.words if word.startswith("out=")]
    lengths = [length for word in given.words if word.startswith("length=") for length in _lengths(word)]
    overrides = [word for word in given.words if not word.startswith(("out=", "length="))]

    from newllm.console import Console
    from newllm.frequencies.spectra import compose_all, spectra
    from newllm.frequencies.tables import collisions, waves, write_channels

    found = spectra(compose_all(overrides, given.config_dir), lengths)
    console = Console()
    for title, table in (
        ("Wavelengths: tokens in a full turn, and how many are longer than the rows of training", waves(found)),
        ("Phase collision: how alike positions look at distances of 1-100, 500-5000 and 10000", collisions(found)),
    ):
        console.section(title, [table])
    for file in files:
        if file.suffix == ".csv":
            write_channels(found, file)
        else:
            from newllm.frequencies.picture import draw

            draw(found, file)
        print(f"Written to {file}")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; newllm frequencies --help shows the usage.")


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
