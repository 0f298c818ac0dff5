"""`newllm bench gate [FILE=docs/speed/gate.yaml]`: short measurements against lower bounds of ratios.

FILE holds a list of checks: `bench`, its `words`, and `bounds`, which give `at_least` and the reason `why` for each
metric; with `native_bf16`, only for processors that have (true) or lack (false) products in bf16. Only ratios, since
seconds differ between machines, while the ratio of two things measured in turns hardly
does. The exit status is 1 if a ratio is below its bound.
"""

from pathlib import Path

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from newllm.bench import measure
from newllm.bench.harness import Result, machine
from newllm.errors import ConfigError, RunError

FILE = "docs/speed/gate.yaml"


class Bound(BaseModel):
    at_least: float
    why: str


class Check(BaseModel):
    bench: str
    words: list[str]
    bounds: dict[str, Bound]  # by metric
    native_bf16: bool | None = None


def main(argv: list[str]) -> int:
    """Measure all checks and print a table of the bounds. Raises RunError if a ratio is below its bound."""
    if len(argv) > 1 or any(word.startswith("-") for word in argv):
        print((__doc__ or "").strip())
        return 0 if argv[0] in ("-h", "--help") else 2
    rows, failed = [], []
    for check in read(Path(argv[0] if argv else FILE)):
        if check.native_bf16 not in (None, machine()["native_bf16"]):
            continue
        command = " ".join(["newllm bench", check.bench, *check.words])
        print(command, flush=True)
        metrics = measure(check.bench, check.words).metrics
        for metric, bound in check.bounds.items():
            value, at_least = metrics.get(metric), bound.at_least
            if not isinstance(value, int | float):
                raise ConfigError(
                    f"{command} has not measured {metric} on this machine; remove the bound, or give words that "
                    "measure it."
                )
            rows.append([metric, f"{value:.2f}", f"{at_least:.2f}", "yes" if value >= at_least else "NO"])
            if value < at_least:
                failed.append(f"{metric} is {value:.2f}, and the bound is {at_least:.2f} ({bound.why})")
    result = Result({})
    result.table("Ratios and their bounds", ["metric", "measured", "at least", "reached"], rows)
    print(result.markdown())
    if failed:
        raise RunError(
            f"slower than it was: {'; '.join(failed)}. Measure on an idle machine to be sure; if the change is meant, "
            "lower the bound and say why"
        )
    return 0


def read(file: Path) -> list[Check]:
    """The checks of a file. Raises ConfigError if it cannot be read or has another form."""
    try:
        return TypeAdapter(list[Check]).validate_python(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); give the file of the bounds.") from None
    except (yaml.YAMLError, ValidationError):
        raise ConfigError(
            f"{file} is not a list of checks, each with bench, words and bounds: {{metric: {{at_least: 1.2, why: …}}}}."
        ) from None
