"""`newllm bench gate [FILE=docs/speed/gate.yaml]`: short measurements against lower bounds of ratios.

FILE holds a list: `bench`, its `words`, and for each metric the bound `at_least` with the reason, `why`. Ratios only:
seconds differ between machines, while a ratio of two things measured in turns hardly does. Exit status 1 if one falls
below its bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from newllm.bench import measure
from newllm.bench.result import Result
from newllm.bench.show import show
from newllm.errors import ConfigError, RunError

FILE = "docs/speed/gate.yaml"
Measure = Callable[[str, list[str]], Result]


@dataclass
class Bound:
    metric: str
    at_least: float
    why: str


@dataclass
class Check:
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
    """The checks of a file. Raises ConfigError for one that is not what the module describes."""
    try:
        nodes = yaml.safe_load(file.read_text(encoding="utf-8"))
        return [
            Check(
                str(node["bench"]),
                [str(word) for word in node["words"]],
                [
                    Bound(str(name), float(bound["at_least"]), str(bound["why"]))
                    for name, bound in node["bounds"].items()
                ],
            )
            for node in nodes
        ]
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); give the file of the bounds.") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"{file} is no list of checks, each with bench, words and bounds: {{metric: {{at_least: 1.2, why: …}}}}."
        ) from None


def run(checks: Sequence[Check], measure: Measure) -> list[str]:
    """Print a table of all bounds; returns a phrase for each that is not reached."""
    rows, failed, metrics = [], [], {}
    for check in checks:
        print("newllm bench", check.bench, *check.words, flush=True)
        found = measure(check.bench, check.words).metrics
        for bound in check.bounds:
            value = _value(check, bound, found)
            good = value >= bound.at_least
            metrics[bound.metric] = value
            rows.append([bound.metric, f"{value:.2f}", f"{bound.at_least:.2f}", "yes" if good else "NO"])
            if not good:
                failed.append(f"{bound.metric} is {value:.2f}, and the bound is {bound.at_least:.2f} ({bound.why})")
    show(Result(metrics, [("Ratios and their bounds", ["metric", "measured", "at least", "reached"], rows)]))
    return failed


def _value(check: Check, bound: Bound, metrics: dict[str, Any]) -> float:
    if not isinstance(metrics.get(bound.metric), int | float):
        raise ConfigError(
            f"newllm bench {check.bench} {' '.join(check.words)} has measured no {bound.metric} on this machine; "
            "take the bound out, or give words that measure it."
        )
    return float(metrics[bound.metric])
