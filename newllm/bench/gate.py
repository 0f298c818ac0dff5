"""`newllm bench gate [FILE=docs/speed/gate.yaml]`: short measurements against lower bounds of ratios.

FILE holds a list: `bench`, its `words`, and for each metric the bound `at_least` with the reason, `why`. Ratios only:
seconds differ between machines, while a ratio of two things measured in turns hardly does. Exit status 1 if one falls
below its bound.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from newllm.bench import measure
from newllm.bench.harness import Result
from newllm.errors import ConfigError, RunError

FILE = "docs/speed/gate.yaml"


class Bound(NamedTuple):
    metric: str
    at_least: float
    why: str


class Check(NamedTuple):
    """A measurement and what it must reach."""

    bench: str
    words: list[str]
    bounds: list[Bound]


def main(argv: list[str]) -> int:
    """Measure and compare; returns 0. Raises RunError naming what fell below its bound."""
    if len(argv) > 1 or any(word.startswith("-") for word in argv):
        print((__doc__ or "").strip())
        return 0 if argv[0] in ("-h", "--help") else 2
    failed = run(read(Path(argv[0] if argv else FILE)), measure)
    if failed:
        raise RunError(
            f"slower than it was: {'; '.join(failed)}. Measure on an idle machine to be sure; if the change is meant, "
            "lower the bound and say why"
        )
    return 0


def read(file: Path) -> list[Check]:
    """The checks of a file. Raises ConfigError if it does not have the form that the module describes."""
    try:
        checks = []
        for node in yaml.safe_load(file.read_text(encoding="utf-8")):
            bounds = [Bound(name, float(one["at_least"]), str(one["why"])) for name, one in node["bounds"].items()]
            checks.append(Check(str(node["bench"]), [*map(str, node["words"])], bounds))
        return checks
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); give the file of the bounds.") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"{file} is no list of checks, each with bench, words and bounds: {{metric: {{at_least: 1.2, why: …}}}}."
        ) from None


def run(checks: Sequence[Check], measure: Callable[[str, list[str]], Result]) -> list[str]:
    """Print a table of all bounds; returns a phrase for each that is not reached."""
    rows, failed = [], []
    for bench, words, bounds in checks:
        print("newllm bench", bench, *words, flush=True)
        found: dict[str, Any] = measure(bench, words).metrics
        for metric, at_least, why in bounds:
            if not isinstance(value := found.get(metric), int | float):
                raise ConfigError(
                    f"newllm bench {bench} {' '.join(words)} has measured no {metric} on this machine; take the bound "
                    "out, or give words that measure it."
                )
            rows.append([metric, f"{value:.2f}", f"{at_least:.2f}", "yes" if value >= at_least else "NO"])
            if value < at_least:
                failed.append(f"{metric} is {value:.2f}, and the bound is {at_least:.2f} ({why})")
    result = Result({})
    result.table("Ratios and their bounds", ["metric", "measured", "at least", "reached"], rows)
    print(result.markdown())
    return failed
